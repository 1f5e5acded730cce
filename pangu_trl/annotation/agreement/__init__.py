"""How far annotators agree, with one another and with themselves: measures, figures, and a page of them."""
