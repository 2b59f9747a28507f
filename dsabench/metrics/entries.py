"""The list of metrics: each once, with its unit, direction, digits, heading, meaning and chance partner.

A new metric is an entry here and the line that computes it, in engine/evaluation.py or engine/run_records.py. Whatever
shows metrics is made from this list: the index's columns, `compare --metric`, tables, axes, JSON schema, report,
glossary, exports and the guide's page. So the room stands left of the store, and imports nothing.
"""

from __future__ import annotations

import math

from dsabench.metrics.metric import Metric

GAP = "generalisation_gap"

_LIST = (
    Metric(
        name="steps", words="steps", digits=0, dtype="Int64", source="run",
        least=1.0, finite=True,
        meaning="steps of the optimizer",
    ),
    Metric(
        name="params", words="parameters", digits=0, dtype="Int64", source="run", over_seeds="mean",
        least=1.0, finite=True,
        meaning="parameters of the model, those of an indexer included",
    ),
    Metric(
        name="indexer_params", words="indexer parameters", digits=0, dtype="Int64", source="run", over_seeds="mean",
        finite=True,
        meaning="parameters that the attention's own loss trains",
    ),
    Metric(
        name="tokens", words="training tokens", digits=0, dtype="Int64", source="run",
        least=1.0, finite=True,
        meaning="tokens that all steps trained on",
    ),
    Metric(
        name="text_tokens", words="tokens of the training text", digits=0, dtype="", source="run", runs="text",
        finite=True,
        meaning="different tokens that there are to train on",
    ),
    Metric(
        name="held_out_tokens", words="tokens of the held-out text", digits=0, dtype="", source="run", runs="text",
        finite=True,
        meaning="tokens of the documents that are held out",
    ),
    Metric(
        name="flops", words="training compute", unit="FLOPs", better="lower", digits=None, source="run",
        finite=True,
        meaning="FLOPs of the model in training, the indexer and its loss included",
        remark="A record has those spent so far.",
    ),
    Metric(
        name="train_loss", words="training loss", unit="nats per token", better="lower", source="evaluation",
        over_seeds="mean", figure="learning",
        meaning="mean cross-entropy on a fixed sample of training windows",
    ),
    Metric(
        name="val_loss", words="validation loss", heading="val loss", unit="nats per token", better="lower",
        source="evaluation", chance="unigram_loss", compared=True, margin_in_nats=True, over_seeds="spread",
        figure="learning",
        meaning="mean cross-entropy on held-out windows",
        remark="What is guessed with probability p costs -ln p.",
    ),
    Metric(
        name="val_bits_per_byte", words="validation bits per byte", unit="bits per byte", better="lower",
        source="evaluation", runs="text", compared=True, margin_in_nats=True, over_seeds="mean",
        meaning="validation loss over ln 2 and the bytes of a token",
        remark="It can be compared between vocabularies.",
    ),
    Metric(
        name=GAP, words="generalisation gap", heading="gap", unit="nats per token", better="lower", dtype="",
        source="analysis", compared=True, margin_in_nats=True, figure="learning",
        least=-math.inf,
        meaning="validation minus training loss",
        remark="How much better a model does on what it has trained on. A task's windows are not met twice: there the "
        "gap is noise.",
    ),
    Metric(
        name="val_accuracy", words="validation accuracy", heading="acc", unit="share of tokens", better="higher",
        source="evaluation", compared=True, over_seeds="spread",
        most=1.0,
        meaning="share of tokens predicted exactly on held-out windows",
        task_meaning="share of answers that are right on held-out windows",
    ),
    Metric(
        name="unigram_loss", words="unigram baseline", unit="nats per token", source="evaluation", over_seeds="mean",
        meaning="loss of a model that knows token frequencies alone, on the same windows",
        task_words="floor", task_meaning="loss of the best solver that does not see what the task is about",
        remark="A model above it has learnt nothing.",
    ),
    Metric(
        name="mass_recall", words="mass recall", heading="recall", unit="share of attention", better="higher",
        digits=2, source="evaluation", selecting=True, chance="mass_recall_chance", over_seeds="beside",
        figure="indexer",
        most=1.0,
        meaning="share of full attention on the selected tokens",
        remark="At its chance an indexer has learnt nothing. At k = L/2 chance alone is about 0.69.",
    ),
    Metric(
        name="mass_recall_chance", words="chance of mass recall", heading="chance", unit="share of attention",
        digits=2, source="evaluation", selecting=True, over_seeds="beside",
        most=1.0,
        meaning="share of full attention on as many random tokens",
    ),
    Metric(
        name="step_ms", words="step time", heading="ms/step", unit="ms", better="lower", digits=2, source="run",
        compared=True, needs_one_machine=True, over_seeds="spread",
        finite=True,
        meaning="median time of a training step, the first ones of each stage left out",
    ),
    Metric(
        name="tokens_per_second", words="training speed", unit="tokens/s", better="higher", digits=0, source="run",
        compared=True, needs_one_machine=True, over_seeds="mean",
        finite=True,
        meaning="training tokens a second at that step time",
    ),
    Metric(
        name="peak_memory_mb", words="peak memory", unit="MB", better="lower", digits=0, source="run", compared=True,
        needs_one_machine=True,
        finite=True,
        meaning="most memory at a time in training steps, of the device, on a CPU of the process",
    ),
    Metric(
        name="task_accuracy", words="task accuracy", unit="share of answers", better="higher", source="evaluation",
        runs="task", chance="chance_accuracy", compared=True, over_seeds="beside", figure="task",
        most=1.0,
        meaning="share of a task's answers that are right",
    ),
    Metric(
        name="chance_accuracy", words="floor of task accuracy", heading="floor", unit="share of answers",
        source="evaluation", runs="task", over_seeds="beside",
        most=1.0,
        meaning="share of answers that the best solver gets right that does not see what the task is about",
        remark="A model at it may have learnt nothing of the task.",
    ),
    Metric(
        name="target_recall", words="target recall, mean of layers", unit="share of targets", better="higher",
        digits=2, source="evaluation", runs="task", selecting=True, chance="target_recall_chance",
        most=1.0,
        meaning="share of targets in a layer's selection, mean over layers",
    ),
    Metric(
        name="target_recall_best", words="target recall, best layer", heading="recall", unit="share of targets",
        better="higher", digits=2, source="evaluation", runs="task", selecting=True, chance="target_recall_chance",
        over_seeds="beside", figure="task",
        most=1.0,
        meaning="share of targets in the best layer's selection",
        remark="Targets are the places of a window where its answers are to be found. One layer that selects them is "
        "enough.",
    ),
    Metric(
        name="target_recall_chance", words="chance of target recall", heading="chance", unit="share of targets",
        digits=2, source="evaluation", runs="task", selecting=True, over_seeds="beside",
        most=1.0,
        meaning="share of targets in a random selection of the same size",
    ),
    Metric(
        name="epochs", words="epochs", source="analysis", runs="text", over_seeds="beside",
        meaning="times that the training text is seen",
        remark="Tokens of all steps, those of a parent included, over tokens of the training text. Text that is seen "
        "again is memorised, and an attention that disturbs memorising then looks better than it learns.",
    ),
    Metric(
        name="k_effective", words="keys that a query reads", heading="keys read", unit="tokens or entries", digits=0,
        dtype="", source="run", over_seeds="beside",
        least=1.0, finite=True,
        meaning="tokens or entries whose keys and values the last query of a window reads, all branches together",
        remark="Of layers that differ, the mean over layers. Keys of an indexer do not count. Dense attention reads "
        "the whole window.",
    ),
    Metric(
        name="val_kl", words="indexer KL", unit="nats", better="lower", dtype="", source="evaluation", selecting=True,
        figure="indexer",
        least=-0.1,
        meaning="KL divergence from the main attention to the indexer, on held-out windows",
        remark="Over all earlier tokens in the dense warm-up, over the selected ones after it: only values of one "
        "stage and one k compare.",
    ),
    Metric(
        name="far_copy_loss", words="loss on far copies", unit="nats per token", better="lower", dtype="",
        source="evaluation", runs="text", compared=True, margin_in_nats=True,
        meaning="validation loss on tokens whose last four tokens, they included, last stood in the window at least a "
        "quarter of it before",
        remark="The quarter is rounded down to a power of two. What a short window forgets shows here. The list "
        "loss_by_copy_distance has all distances.",
    ),
    Metric(
        name="near_copy_loss", words="loss on near copies", unit="nats per token", better="lower", dtype="",
        source="evaluation", runs="text", compared=True, margin_in_nats=True,
        meaning="validation loss on tokens whose last four tokens, they included, last stood in the window less than a "
        "quarter of it before",
    ),
    Metric(
        name="far_copy_share", words="share of far copies", unit="share of tokens", dtype="",
        source="evaluation", runs="text",
        most=1.0,
        meaning="share of validation tokens that are far copies",
        remark="The same for every model of one text and length. Of a share p of n tokens the loss on far copies is a "
        "mean of p n.",
    ),
    Metric(
        name="extrapolated_loss", words="loss on longer windows", heading="longer loss", unit="nats per token",
        better="lower", dtype="", source="evaluation", compared=True, margin_in_nats=True,
        meaning="validation loss on windows of the last of train.eval_multiples times the length",
        remark="The list loss_by_multiple has all of them.",
    ),
    Metric(
        name="extrapolated_accuracy", words="accuracy on longer windows", heading="longer acc", unit="share of tokens",
        better="higher", dtype="", source="evaluation", compared=True,
        most=1.0,
        meaning="share of tokens predicted exactly on windows of the last of train.eval_multiples times the length",
        task_meaning="share of answers that are right in windows of the last of train.eval_multiples times the length",
    ),
    Metric(
        name="conversion_loss", words="loss of the conversion", unit="nats per token", better="lower", dtype="",
        source="evaluation", selecting=True,
        least=-math.inf,
        meaning="validation loss of sparse minus dense attention, with the same weights, before the first sparse step",
        remark="Of runs that start from a trained model. What the selection alone costs; the mass recall of the same "
        "record says how much attention it holds.",
    ),
    Metric(
        name="eval_seconds", words="evaluation time", unit="s", better="lower", dtype="", source="evaluation",
        finite=True,
        meaning="time that the evaluation took",
    ),
    Metric(
        name="train_seconds", words="training time", unit="s", better="lower", dtype="", source="run",
        finite=True,
        meaning="seconds of training, the start included, evaluations left out",
    ),
    Metric(
        name="other_load", words="load of other programs", unit="cores", digits=2, dtype="", source="run",
        finite=True,
        meaning="cores of the machine that other processes kept busy during training, on average",
        remark="Linux alone tells. Threads that must share cores make steps several times slower.",
    ),
    Metric(
        name="warmup_step_ms", words="step time of the warm-up", unit="ms", better="lower", digits=2, dtype="",
        source="run", selecting=True,
        finite=True,
        meaning="median time of a step of the dense warm-up",
    ),
    Metric(
        name="mfu", words="model FLOPs used", unit="share of the rate", better="higher", digits=None, dtype="",
        source="run",
        finite=True,
        meaning="model FLOPs a second over the measured rate of matrix products",
    ),
    Metric(
        name="matmul_flops_per_second", words="rate of matrix products", unit="FLOPs/s", better="higher", digits=None,
        dtype="", source="run",
        finite=True,
        meaning="FLOPs a second of large matrix products, measured on the device in the run's precision",
    ),
    Metric(
        name="loss", words="loss of batches", unit="nats per token", better="lower", dtype="", source="steps",
        figure="learning",
        meaning="mean cross-entropy of the batches since the record before",
    ),
    Metric(
        name="kl", words="indexer KL of a step", unit="nats", better="lower", dtype="", source="steps", selecting=True,
        least=-0.1,
        meaning="KL divergence from the main attention to the indexer in the last step",
    ),
    Metric(
        name="balance_loss", words="balance loss", better="lower", dtype="", source="steps",
        meaning="load-balancing loss of the router, 1 when experts are used evenly",
    ),
    Metric(
        name="grad_norm", words="gradient norm", dtype="", source="steps",
        meaning="norm of the backbone's gradient before clipping",
    ),
    Metric(
        name="indexer_grad_norm", words="indexer's gradient norm", dtype="", source="steps", selecting=True,
        meaning="norm of the indexer's gradient before clipping",
    ),
    Metric(
        name="router_entropy", words="router entropy", unit="nats", dtype="", source="steps",
        meaning="mean entropy of the router's softmax, ln E of E experts when it has no preference",
    ),
    Metric(
        name="expert_load_max", words="largest expert load", dtype="", source="steps",
        most=1.0,
        meaning="share of routes that the most used expert got, mean over layers",
    ),
    Metric(
        name="expert_load_min", words="smallest expert load", dtype="", source="steps",
        most=1.0,
        meaning="share of routes that the least used expert got, mean over layers",
    ),
    Metric(
        name="learning_rate", words="learning rate", digits=None, dtype="", source="steps",
        finite=True,
        meaning="learning rate of the backbone in the last step",
    ),
    Metric(
        name="seconds", words="training time so far", unit="s", better="lower", dtype="", source="steps",
        finite=True,
        meaning="seconds of training up to the record, evaluations left out",
    ),
)  # fmt: skip

METRICS = {metric.name: metric for metric in _LIST}
"""Every metric by its name, in the order of the index's columns. Read when something is shown, never copied: whoever
adds an entry, a test say, sees it everywhere."""
