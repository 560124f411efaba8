"""Every setting of a run: its default, its unit and its meaning, once."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Data:
    """Where the text comes from and how it is split."""

    source: tuple[str, ...] = ("python-docs",)  # globs, tfds:NAME, python-docs
    text_key: str = "text"  # key of the text in .jsonl, .parquet and TFDS records
    encoding: str = "utf-8"  # codec of text files without byte order mark; also cp949
    language: str = "en"  # [ISO 639-1] for sentence splitting
    store: str = ""  # token store directory; "" is WORKDIR/store
    dtype: str = "auto"  # auto, uint16 or uint32: type of a stored token id
    eval_share: float = 0.01  # [share of documents] held out, by document hash
    eval_rows: int = 1024  # [rows] of the held-out set that are scored
    num_workers: int = 0  # [processes] that prepare the store; 0 is all cores


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """How text becomes token ids."""

    kind: str = "wordpiece"  # wordpiece, bpe, byte_bpe or unigram
    path: str = ""  # tokenizer.json, vocab.txt or .model to load; "" trains one
    lowercase: bool = True  # also strips accents of Latin, Greek, Cyrillic letters
    train_bytes: int = 64_000_000  # [bytes] of text that a new tokenizer is trained on
    min_frequency: int = 2  # [occurrences] below which training makes no merge


@dataclasses.dataclass(frozen=True)
class Objective:
    """What the model is asked to predict."""

    kind: str = "mlm"  # masked tokens; ltr: next tokens; rtd: replaced ones (ELECTRA)
    pair: str = "nsp"  # nsp (is B next), sop (are A and B in order) or none (A alone)
    input: str = "auto"  # segment_pair, sentence_pair (one sentence each); of pair=none
    # doc_sentences, full_sentences (a row is one example); auto is the first that fits
    short_seq_prob: float = 0.1  # [share of segments] cut to a random shorter length
    mask_rate: float = 0.15  # [share of tokens] to predict
    mask_token_share: float = 0.8  # [share of those] replaced by [MASK]
    random_token_share: float = 0.1  # [share of those] replaced by a random token
    mask_count: str = "unbiased"  # unbiased, or nearest: rounded as in the original
    masking: str = "token"  # in units of a token, whole_word, or span of 1 to 10 words
    span_boundary: bool = False  # masking=span: predict also from what is beside it
    generator_size: float = 0.25  # of kind=rtd: its widths over the discriminator's
    rtd_factor: float = 50.0  # of kind=rtd: times the discriminator's loss


@dataclasses.dataclass(frozen=True)
class TaskSettings:
    """What the model is for: its head and the names of its classes."""

    kind: str = "pretrain"  # or classify, regress, tag, span, choice, encoder (no head)
    labels: tuple[str, ...] = ()  # of the head's classes, in order; () finds them
    train_file: str = ""  # .tsv .csv .json, also compressed, or tfds:NAME:SPLIT
    dev_file: str = ""  # the same, to score on and to choose the best step by
    dev_share: float = 0.1  # [share of train_file] held out where dev_file is ""
    glue: str = ""  # GLUE task: whose files, if none are named, and form of submission
    text_column: str = "text"  # by name, or by number from 0; a|b: what there is of it
    pair_column: str = ""  # of the second text, if any; of the choices: a,b,c or a list
    start_column: str = ""  # of the words that begin every choice, if there are any
    label_column: str = "label"
    skip_label: str = ""  # of examples to leave out (classify, regress); "" keeps all
    delimiter: str = ""  # between columns: tab, quoted_tab (with quotes as in .csv) or
    # a character; "" is by the suffix
    bad_rows: str = "auto"  # with missing or extra columns or without label: refuse,
    # skip, or cut (extra columns at the end; skip others); auto: skip if glue is set
    doc_stride: int = 128  # [tokens] between the windows over a long text (span)
    null_windows: float = 1.0  # [share] trained on, of those without the answer (span)
    max_answer: int = 30  # [tokens] of the longest answer (span)
    positive: str = ""  # label that score=f1 counts; "" is the second of two
    score: str = ""  # of the dev set, to choose the best step; "" is the kind's own
    features: str = ""  # of the frozen encoder, for an LSTM (tag); "" tunes it
    lstm: bool = False  # one between encoder and head, tuned with both
    lstm_hidden: int = 768  # [features] of each direction of an LSTM's two layers
    epochs: float = 3.0  # [passes over train_file]; decides config.steps


@dataclasses.dataclass(frozen=True)
class Model:
    """The encoder's sizes and numerics."""

    vocab_size: int = 30_522  # [tokens], also the size of a tokenizer trained here
    vocab_multiple: int = 128  # [tokens] the embedding table is padded to a multiple
    hidden: int = 768  # [features]
    layers: int = 12
    heads: int = 12
    mlp: int = 3072  # [features] inside the feed-forward layer
    embedding: int = 0  # [features] of the embeddings; 0 is hidden, else a map follows
    layer_groups: int = 0  # of neighbours that share their parameters; 0 is none
    positions: int = 512  # [tokens] the longest row
    position: str = "learned"  # learned, sinusoidal, rope or none
    rope_base: float = 10_000.0  # of the wavelengths of position=rope
    segments: int = 2  # token types; 0 is no embedding of them
    dropout: float = 0.1  # [probability] on embeddings and sublayer outputs
    attention_dropout: float = 0.1  # [probability] on attention probabilities
    activation: str = "gelu_tanh"  # gelu_tanh (the original code) or gelu (erf)
    pooler: str = "tanh"  # of the summary: tanh, gelu (ELECTRA) or relu (DistilBERT)
    feed_forward: str = "gelu"  # of that activation, or gated: geglu (of it) or swiglu
    norm: str = "post"  # post: after each residual; pre, and rms (RMSNorm): before it
    norm_epsilon: float = 1e-12
    init_std: float = 0.02  # of the truncated normal
    dtype: str = "bfloat16"  # of the computation; parameters are float32
    matmul_dtype: str = "auto"  # that linear maps, and flash, multiply; auto is dtype
    mixer: str = "attention"  # of positions: (causal_)attention, mamba or lstm
    window: int = 0  # [tokens] around its own that local attention sees; 0 is all
    global_every: int = 3  # layers of which the first sees all, in spite of a window
    attention: str = "auto"  # auto, xla, flash, cudnn, pallas or splash
    scan: bool = True  # one compiled layer in a loop, or all layers unrolled
    remat: str = "none"  # none, full, or dots: keep matrix products, redo the rest

    @property
    def embedding_width(self) -> int:
        """Features of the embeddings."""
        return self.embedding or self.hidden

    def narrowed(self, share: float) -> "Model":
        """The same with less hidden features, heads and feed-forward features.

        The embeddings keep their width, so that both can share them.
        """
        return dataclasses.replace(
            self,
            embedding=self.embedding_width,
            hidden=round(self.hidden * share),
            heads=max(1, round(self.heads * share)),
            mlp=round(self.mlp * share),
        )


@dataclasses.dataclass(frozen=True)
class Optim:
    """The update rule and the learning rate over the whole run."""

    name: str = "adamw"  # adamw, lamb or radam
    peak_rate: float = 1e-4
    end_rate: float = 0.0  # linear and cosine end here
    schedule: str = "linear"  # linear, cosine, rsqrt or constant, after the warm-up
    warmup_share: float = 0.01  # [share of all steps]
    decay_from: str = "warmup"  # warmup, or start: decay counted from step 0 (TF1)
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-6
    weight_decay: float = 0.01  # not on LayerNorm and biases
    bias_correction: bool = True  # False is the original's AdamW
    clip_norm: float = 1.0  # [global L2 norm]; 0 is off
    layer_decay: float = 1.0  # rate of a layer over that of the next one up
    freeze: str = ""  # regex of the paths of parameters that stay as they are
    freeze_layers: int = 0  # first layers that stay as they are, and the embeddings


@dataclasses.dataclass(frozen=True)
class Distill:
    """What a student learns from a teacher, and how much of each; 0 is nothing."""

    teacher: str = ""  # what config.init may be, trained on the same task; "" is none
    copy: bool = True  # without config.init begin as these layers, with their sizes
    layers: tuple[int, ...] = ()  # of the teacher, from 1, one for each of the student
    # () is evenly spaced up to the last; of a copy every second
    temperature: float = 2.0  # that both sides' logits are divided by
    soft: float = 1.0  # times the cross entropy with the teacher's probabilities
    hard: float = 1.0  # times the task's own loss
    cosine: float = 0.0  # times 1 - the cosine of the last hidden states
    hidden: float = 0.0  # times the squared error of the hidden states
    attention: float = 0.0  # times that of the attention scores before the softmax


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of the run with one batch shape."""

    share: float = 1.0  # [share of all steps]
    length: int = 128  # [tokens] a row
    batch: int = 256  # [rows] a step, over all devices
    max_packed: int = 8  # [examples] that may share a row; 1 is unpacked
    accumulate: int = 1  # micro-batches a step is worked through in


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Devices along each mesh axis; one of them may be -1: all the rest."""

    data: int = -1  # copies of the model
    fsdp: int = 1  # shards of parameters and optimizer state, also data-parallel
    model: int = 1  # shards of heads, feed-forward features and vocabulary


@dataclasses.dataclass(frozen=True)
class Config:
    """One pretraining run."""

    init: str = ""  # run, Hugging Face or TF1 directory to start from; "" is random,
    # none:DIR too, with the sizes and the tokenizer of DIR
    seed: int = 0  # decides initial weights, data order, masks and dropout
    steps: int = 1_000_000  # [updates] in all phases together
    log_every: int = 100  # [steps]
    eval_every: int = 5_000  # [steps]
    save_every: int = 5_000  # [steps]
    keep_last: int = 3  # newest checkpoints kept
    keep_best: int = 1  # checkpoints of best score kept besides
    hang_after: float = 900.0  # [s] without progress that end the run; 0 is never
    patience: int = 0  # [evaluations] without a new best that end the run; 0 is off
    data: Data = Data()
    tokenizer: Tokenizer = Tokenizer()
    task: TaskSettings = TaskSettings()
    objective: Objective = Objective()
    model: Model = Model()
    optim: Optim = Optim()
    distill: Distill = Distill()
    phases: tuple[Phase, ...] = (Phase(),)
    mesh: Mesh = Mesh()

    @property
    def sized_elsewhere(self) -> bool:
        """Whether weights from elsewhere decide sizes and tokenizer."""
        return bool(self.init or self.distill.teacher)

    def phase_starts(self) -> tuple[int, ...]:
        """First step of each phase, then the end of the run. [steps]"""
        total, starts = 0.0, []
        for phase in self.phases:
            starts.append(round(total * self.steps))
            total += phase.share
        return (*starts, self.steps)
