"""A page on one run or several: settings, curves, figures by step, samples, times; one HTML file that loads nothing."""
