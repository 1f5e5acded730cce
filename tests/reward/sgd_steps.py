"""Options of runs that show their gradients: steps of plain SGD, each logged, nothing saved."""

SGD_STEPS = dict(
    max_length=128,
    max_steps=1,
    learning_rate=0.1,
    lr_scheduler_type="constant",
    optim="sgd",
    max_grad_norm=0.0,
    use_cpu=True,
    gradient_checkpointing=False,
    report_to="none",
    save_strategy="no",
    logging_steps=1,
)
