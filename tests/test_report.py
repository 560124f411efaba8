"""The page of `bert-jax report`: what it finds, what it says, and that it is safe."""

import itertools
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_jax import config as configs
from bert_jax import report
from bert_jax.__main__ import main
from bert_jax.log import Reporter
from tests.browser import chromium

ROOT = Path(__file__).parents[1]
TEMPLATE = (ROOT / "bert_jax" / "report.html").read_text("utf-8")
RATES = {  # a second
    "useful_tokens_per_second": 900.0,
    "padded_tokens_per_second": 1000.0,
    "flops_per_second": 1e9,
    "steps_per_second": 2.0,
}
VOID = {"meta", "input", "br", "link", "hr", "img"}


def write(folder, scores=(0.5, 0.7, 0.6), seed=0, steps=30, finished=True, **fields):
    """A run that is evaluated every ten steps; a field's dot is `__`."""
    config = json.loads(configs.to_json(configs.Config(seed=seed, steps=steps)))
    config["task"] |= {"kind": "classify", "score": "accuracy"}
    for name, value in fields.items():
        *parents, last = name.split("__")
        group = config
        for parent in parents:
            group = group[parent]
        group[last] = value
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    with Reporter(folder, steps) as reporter:
        reporter.event("start", 0, 1.0, device="TPU v5e", devices=4)
        for number, score in enumerate(scores, 1):
            for step in (10 * number - 5, 10 * number):
                loss = {"loss": 1 / step, "learning_rate": 1e-3, "grad_norm": 1.0}
                reporter.train(step, loss | RATES)
            values = {"eval_loss": 1 - score, "eval_score": score}
            reporter.evaluation(10 * number, values | {"eval_accuracy": score})
    if finished:
        (folder / "summary.json").write_text(json.dumps({"steps": steps}))
    return folder


class Page(HTMLParser):
    """Fails on elements that are not closed, and keeps texts, tables and data."""

    def __init__(self, text):
        super().__init__()
        self.stack, self.ids, self.elements = [], [], []
        self.tables: list[list[list[str]]] = []
        self.texts: dict[str, str] = {}  # by element
        self.data = ""
        self.feed(text)
        self.close()
        assert not self.stack
        assert len(set(self.ids)) == len(self.ids)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.elements.append((tag, given))
        self.ids += filter(None, [given.get("id")])
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self.stack.append((tag, given))

    def handle_endtag(self, tag):
        assert self.stack.pop()[0] == tag

    def handle_data(self, data):
        if not self.stack:
            return
        tag, given = self.stack[-1]
        self.texts[tag] = self.texts.get(tag, "") + data
        if given.get("id") == "data":
            self.data += data
        if {"td", "th"} & {name for name, _ in self.stack}:
            self.tables[-1][-1][-1] += data

    def rows(self, number):
        """Of a table by their heads: 0 scores, 1 settings, -2 common, -1 cost."""
        return {row[0]: row[1:] for row in self.tables[number]}


def page(*paths):
    return Page(report.page(report.read(paths)))


@pytest.fixture
def study(tmp_path):
    """A sweep: three seeds of one setting, two of another, one of them unfinished."""
    for seed, last in enumerate((0.6, 0.62, 0.67)):
        write(tmp_path / f"s/low/seed={seed}", (0.5, 0.7, last), seed)
    high = {"optim__peak_rate": 0.5, "data__language": "ko"}
    write(tmp_path / "s/높은 rate/seed=0", seed=0, **high)
    write(tmp_path / "s/높은 rate/seed=1", (0.9,), 1, finished=False, **high)
    return tmp_path / "s"


def test_stages_of_trials_are_one_row_each(tmp_path):
    """They begin from another run of the same seed, whose path differs."""
    for seed in (0, 1):
        trial = tmp_path / f"s/low/seed={seed}"
        write(trial / "pretrain", seed=seed)
        write(trial / "sst2", seed=seed, init=str(trial / "pretrain"), steps=40)
    assert {"pretrain", "sst2"} <= page(tmp_path / "s").rows(0).keys()
    assert [len(cell.runs) for cell in report.read([tmp_path / "s"])] == [2, 2]


def test_a_grid_is_shown_stage_by_stage(tmp_path):
    for rate, seed in itertools.product((0.25, 0.5), (0, 1)):
        trial = tmp_path / f"s/{rate}/seed={seed}"
        more = {"optim__peak_rate": rate, "seed": seed}
        for name in ("ner", "pretrain"):
            kind = "tag" if name == "ner" else name
            write(trial / name, task__kind=kind, task__score="", **more)
        write(trial / "sst2", init=str(trial / "pretrain"), task__glue="sst2", **more)
    text = report.page(report.read([tmp_path / "s"]))
    found = Page(text)
    assert found.texts["h3"] == "pretrainnersst2" * 3  # scores, settings, boxes
    for number in (0, 1, 2, 3, 5, 7):  # scores, then settings and what is common
        heads = ["setting", "final"] if number < 3 else ["setting"]
        assert list(found.rows(number)) == [*heads, "0.25", "0.5"]
    assert "init" in found.tables[7][0] and "init" not in found.tables[3][0]
    assert list(found.rows(-1))[1:4] == ["pretrain: 0.25", "pretrain: 0.5", "ner: 0.25"]
    data = json.loads(found.data)
    shown = {}
    for chart in data["charts"]:
        own = shown.setdefault(chart["stage"], set())
        own |= {curve["run"] for curve in chart["curves"]}
    assert list(shown.items()) == [
        *(("pretrain", {0, 1, 2, 3}), ("ner", {4, 5, 6, 7})),
        ("sst2", {8, 9, 10, 11}),
    ]
    looks = [run["look"] for run in data["runs"]]
    assert looks == ["c0 d0", "c0 d0", "c1 d0", "c1 d0"] * 3


def test_runs_that_differ_by_seed_are_one_row(study):
    found = page(study)
    rows = found.rows(0)
    mean, sd = np.mean([0.6, 0.62, 0.67]), np.std([0.6, 0.62, 0.67], ddof=1)
    assert rows["low"] == [
        *("3 finished", "30"),
        *(f"{1 - mean:.4f} ± {sd:.4f} (3)", "0.3000 ± 0.0000 (3)"),
        *(f"{mean:.4f} ± {sd:.4f} (3)", "0.7000 ± 0.0000 (3)"),
    ]
    state = "1 finished, 1 unfinished at step 10 of 30"
    scores = ["0.4000", "0.3000", "0.6000", "0.7000"]  # of the finished one
    assert rows["높은 rate"] == [state, "10–30", *scores]
    low = "0.3700 ± 0.0361 0.3000 ± 0.0000 0.6300 ± 0.0361 0.7000 ± 0.0000 "
    assert found.texts["b"] == low + "0.3000" + "0.7000"  # best, and as good
    assert found.texts["h1"] == "s" and "5 runs of 2 settings" in found.texts["p"]


def test_only_what_differs_is_compared(study):
    found = page(study)
    assert [row[1:] for row in found.tables[1]] == [
        ["data.language", "optim.peak_rate"],
        ["en", "0.0001"],
        ["ko", "0.5"],
    ]
    common = found.rows(-2)
    assert common["model.layers"] == ["12"] and common["phases[0].length"] == ["128"]
    fields = {n for n in report.read([study])[0].runs[0].config if n != "seed"}
    assert set(common) - {"field"} == fields - {"data.language", "optim.peak_rate"}
    more = {"optim__beta1": 0.5, "data__text_key": "본문", "init": "x"}
    write(study.parent / "other", **more)
    wide = page(study, study.parent / "other").tables[1]
    assert ["data.text_key", "text", "text", "본문"] in wide


def test_cost_adds_up(study):
    rows = page(study).rows(-1)
    # 100 steps in 50 s, 10 more in 5 s.
    low = ["3", "4.50e10", "0.0405", "0.0450", "0.0125"]
    assert rows["low"][:5] == low and rows["low"][6] == "TPU v5e × 4"
    assert rows["all"][:2] == ["5", "6.50e10"]


def test_curves_have_every_run_and_its_tokens(study):
    data = json.loads(page(study).data)
    assert [run["name"] for run in data["runs"]] == [
        *(f"low, seed {seed}" for seed in range(3)),
        *(f"높은 rate, seed {seed}" for seed in range(2)),
    ]
    axes = data["runs"][0]["axes"]
    assert axes["step"] == [0, 5, 10, 15, 20, 25, 30]
    assert axes["tokens"] == [450 * step for step in axes["step"]]
    assert axes["hours"] == pytest.approx([step / 7200 for step in axes["step"]])
    charts = {chart["title"]: chart["curves"] for chart in data["charts"]}
    assert list(charts) == [
        *("Loss", "Accuracy", "Learning rate"),
        *("Speed [useful tokens/s, all devices]", "Gradient norm"),
    ]
    held = [curve for curve in charts["Loss"] if curve["heldOut"]]
    assert len(charts["Loss"]) == 10 and len(held) == 5
    assert held[0] | {"run": 0} == held[0]
    assert held[0]["x"] == [10, 20, 30] and held[0]["y"] == [0.5, 0.3, 0.4]


def test_unfinished_and_damaged_runs_are_shown(tmp_path):
    torn = write(tmp_path / "torn", finished=False)
    with (torn / "metrics.jsonl").open("a") as file:
        file.write('{"step": 35, "kind": "tr')
    (torn / "events.jsonl").unlink()
    diverged = write(tmp_path / "diverged", optim__peak_rate=9.0, finished=False)
    with (diverged / "metrics.jsonl").open("a") as file:
        file.write('{"step": 33, "kind": "train", "time": 1, "loss": null}\n')
    begun = write(tmp_path / "begun", (), init="y", finished=False)
    (begun / "metrics.jsonl").unlink()
    found = page(tmp_path)
    rows = found.rows(0)
    assert rows["torn"][:2] == ["unfinished at step 30 of 30", "30"]
    assert rows["diverged"][:2] == ["unfinished at step 33 of 30", "33"]
    assert rows["begun"] == ["unfinished at step 0 of 30", "0", *"––––"]
    assert found.texts["i"].count(".") == 8 and "b" not in found.texts
    costs = found.rows(-1)
    assert costs["torn"][4:] == ["0.00417", "–", "–"]
    assert costs["diverged"][1:5] == ["–"] * 4  # its last report lacks rates
    assert costs["begun"][1] == "0.00e00" and costs["all"][1] == "–"


def test_a_config_of_another_version_is_read(tmp_path):
    old = write(tmp_path / "old")
    values = json.loads((old / "config.json").read_text())
    del values["optim"]["layer_decay"], values["phases"][0]["accumulate"]
    values["bygone"] = {"x": 1}
    (old / "config.json").write_text(json.dumps(values))
    write(tmp_path / "new")
    found = page(tmp_path)
    assert found.tables[1] == [["setting", "bygone.x"], ["new", "–"], ["old", "1"]]


def test_new_metrics_get_a_chart_of_their_own(tmp_path):
    run = write(tmp_path / "run", task__kind="pretrain", task__score="")
    line = {"step": 30, "kind": "eval", "eval_mlm_loss": 2.5, "eval_mlm_loss/ko": 3.5}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line | {"time": 1, "eval_puzzles_done": 0.25}) + "\n")
    found = page(run)
    heads = [head.split(" ↓")[0].split(" ↑")[0] for head in found.tables[0][0]]
    assert heads[3:] == [
        *("Masked-token loss [nats]", "Loss", "Accuracy"),
        *("Masked-token loss [nats] · ko", "Puzzles done", "Score"),
    ]
    assert found.rows(0)["run"][-6:-2] == ["3.5000", "3.5000", "0.2500", "0.2500"]
    assert "Nothing but the seed." in found.texts["p"]


def test_pretraining_shows_the_parts_of_its_loss(tmp_path):
    run = write(tmp_path / "run", (), task__kind="pretrain")
    line = {"step": 5, "kind": "train", "time": 1, "loss": 3.0, "mlm_loss": 2.5}
    held_out = {"step": 5, "kind": "eval", "time": 1, "eval_mlm_loss": 2.75}
    lines = [json.dumps(own) + "\n" for own in (line, held_out)]
    (run / "metrics.jsonl").write_text("".join(lines))
    charts = json.loads(page(run).data)["charts"]
    assert [chart["title"] for chart in charts] == ["Masked-token loss [nats]"]
    assert [curve["y"] for curve in charts[0]["curves"]] == [[2.5], [2.75]]
    (run / "metrics.jsonl").write_text(lines[0])  # not evaluated yet
    (chart,) = json.loads(page(run).data)["charts"]
    assert [curve["y"] for curve in chart["curves"]] == [[2.5]]


EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&<!--data-->"


def test_names_and_values_are_inert(tmp_path):
    name = EVIL.replace("/", "∕")
    write(tmp_path / name, data__text_key=EVIL, data__source=[EVIL, "한국어"])
    write(tmp_path / "<img>", optim__name=EVIL)
    found = page(tmp_path)
    assert [tag for tag, _ in found.elements].count("script") == 2
    assert "img" not in {tag for tag, _ in found.elements}
    assert {row[0] for row in found.tables[0]} >= {name, "<img>"}
    assert [run["name"] for run in json.loads(found.data)["runs"]] == ["<img>", name]
    values = [row for row in found.tables[1] if row[0] == "data.source"]
    assert values == [["data.source", "python-docs", f"{EVIL}, 한국어"]]


def test_names_that_are_no_unicode_can_be_written(tmp_path, capsys):
    write(tmp_path / "runs" / "bad\udcff")
    runs = str(tmp_path / "runs")
    assert main(["report", runs, f"--out={tmp_path / 'page.html'}"]) == 0
    assert "bad?" in (tmp_path / "page.html").read_text("utf-8")


def test_the_page_needs_nothing_else(study):
    text = report.page(report.read([study]))
    found = Page(text)
    for tag, attributes in found.elements:
        assert not {"src", "href", "srcset"} & attributes.keys(), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes)
        if tag == "th":
            assert attributes["scope"] in ("row", "col", "colgroup")
    tags = [tag for tag, _ in found.elements]
    assert tags.count("table") == tags.count("caption") == 4
    assert tags.count("h1") == 1 and tags.count("h2") == 4
    urls = set(re.findall(r"\w+://[^\s\"']*", text))
    assert urls == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert not re.search(r"@import|url\(", text)
    assert "default-src 'none';" in str(found.elements) and "<!--" not in text


@pytest.mark.parametrize(
    ("folders", "asked", "names"),
    [
        (["a"], ["a"], ["a"]),
        (["a", "b"], ["b", "a"], ["b", "a"]),
        (["x/a", "y/a"], ["x/a", "y/a"], ["x/a", "y/a"]),
        (["s/seed=0"], ["s"], ["s"]),
        (["s/c/seed=0", "s/d/seed=0"], ["s"], ["c", "d"]),
        (["s/c/seed=0", "r"], ["r", "s", "s/c", "r"], ["r", "s/c"]),
        (["s/seed=0", "s/seed=1"], ["s"], ["seed=0", "seed=1"]),
    ],
)
def test_names_are_short_and_tell_apart(tmp_path, folders, asked, names):
    for number, folder in enumerate(folders):
        write(tmp_path / folder, (), optim__beta1=number / 9)
    cells = report.read([tmp_path / path for path in asked])
    assert [cell.name for cell in cells] == names


def test_runs_of_one_setting_need_no_sweep(tmp_path):
    for name, seed in (("a", 1), ("b", 0), ("c", 0)):
        write(tmp_path / name, seed=seed)
    (cell,) = report.read([tmp_path / "a", tmp_path / "b"])
    assert cell.name == "b, a" and cell.labels == ["0", "1"]
    (cell,) = report.read([tmp_path / name for name in "bc"])
    assert cell.labels == ["b: 0", "c: 0"]


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=300), st.integers(2, 12))
def test_thinning_keeps_what_stands_out(y, buckets):
    x = list(range(len(y)))
    kept_x, kept_y = report.thin(x, y, buckets)
    assert len(kept_x) <= max(2 * buckets, 2)
    assert kept_x == sorted(set(kept_x)) and kept_y == [y[i] for i in kept_x]
    assert {0, len(y) - 1} <= set(kept_x)
    assert min(kept_y) == min(y) and max(kept_y) == max(y)
    if len(y) > 2 * buckets:
        for part in np.array_split(y, buckets - 1):
            assert part.min() in kept_y and part.max() in kept_y


def test_twenty_long_runs_stay_below_three_megabytes():
    rng = np.random.default_rng(0)
    names = ["loss", "mlm_loss", "mlm_accuracy", "nsp_loss", "nsp_accuracy"]
    names += ["learning_rate", "grad_norm", *RATES]
    lines = [
        {"step": step, "kind": "train", "time": 1.0}
        | dict(zip(names, rng.random(len(names)).tolist(), strict=True))
        for step in range(1, 10_001)
    ]
    config = report._flat(json.loads(configs.to_json(configs.Config(steps=10_000))))

    def size(count):
        runs = [
            report.Run(Path(f"r{i}"), config | {"seed": i}, lines, None, "")
            for i in range(count)
        ]
        return len(report.page([report.Cell("runs", runs)]).encode())

    one, two = size(1), size(2)
    assert 20_000 < two - one and one + 19 * (two - one) < 3e6


def test_the_command_writes_the_page(study, tmp_path, capsys):
    out = tmp_path / "new" / "study.html"
    assert main(["report", str(study), f"--out={out}"]) == 0
    assert capsys.readouterr().out == f"{out}: runs 5, settings 2\n"
    assert main(["report", str(study), f"--out={out}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["out"] == str(out)
    low, high = found["cells"]
    assert low["name"] == "low" and len(low["runs"]) == 3 and low["steps"] == [30] * 3
    assert low["scores"]["accuracy"]["best"] == {"mean": 0.7, "sd": 0.0, "n": 3}
    assert high["scores"]["accuracy"]["final"] == {"mean": 0.6, "sd": None, "n": 1}
    assert high["settings"] == {"data.language": "ko", "optim.peak_rate": 0.5}
    assert high["cost"][1] | {"hours": 0} == {
        **{"flops": 5e9, "tokens": 4500.0, "padded_tokens": 5000.0, "hours": 0},
        **{"step_hours": 5 / 3600, "device": "TPU v5e × 4"},
    }
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["no/such"], "no/such: neither a run nor"),
        (["run", "text.txt", "no"], "text.txt: neither a run nor"),
        (["run", "foreign"], "foreign: neither a run nor"),
        (["run", "damaged"], "damaged/config.json is damaged"),
        (["run", "phases"], "phases/config.json is damaged"),
        ([], "RUN"),
        (["--workdir=no"], "no: neither a run nor"),
        (["run", "--workdir=no"], "no: neither a run nor"),
        (["run", "--out=text.txt/page.html"], "text.txt/page.html"),
    ],
)
def test_mistakes_are_one_message(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "run")
    Path("text.txt").write_text("text")
    for name, text in {
        "foreign": '{"hidden_size": 768}',
        "damaged": "{",
        "phases": '{"seed": 0, "steps": 1, "phases": [3]}',
    }.items():
        Path(name).mkdir()
        Path(name, "config.json").write_text(text)
    before = sorted(tmp_path.rglob("*"))
    assert main(["report", *words]) == 2
    told = capsys.readouterr().err
    assert told.count("bert-jax: error:") == 1 and message in told
    assert sorted(tmp_path.rglob("*")) == before


# --- Colours ---

# Machado et al. 2009, severity 1, linear RGB: protanopia, deuteranopia, tritanopia.
BLIND = (
    ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216))
    + ((-0.003882, -0.048116, 1.051998),),
    ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413))
    + ((-0.011820, 0.042940, 0.968881),),
    ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602))
    + ((0.004733, 0.691367, 0.303900),),
)


def linear(colour):
    value = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def oklab(rgb):
    """Ottosson 2020: distances are about as large as they look."""
    mixed = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    turned = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return turned @ np.cbrt(mixed @ np.clip(rgb, 0, 1))


def contrast(a, b):
    """WCAG 2.2."""
    low, high = sorted(linear(c) @ [0.2126, 0.7152, 0.0722] for c in (a, b))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_colours_can_be_read_and_told_apart(dark):
    blocks = re.findall(r":root \{(.*?)\}", TEMPLATE, re.DOTALL)
    assert len(blocks) == 2
    named = dict(re.findall(r"--(\w+): (#\w{6})", blocks[dark]))
    for ground in (named["page"], named["fill"]):
        assert contrast(named["text"], ground) >= 7
        assert contrast(named["soft"], ground) >= 4.5
    lines = [named[f"c{i}"] for i in range(report._COLOURS)]
    assert all(contrast(line, named["page"]) >= 3 for line in lines)
    for a, b in itertools.combinations(map(linear, lines), 2):
        assert math.dist(oklab(a), oklab(b)) > 0.12
        for kind in map(np.array, BLIND):
            assert math.dist(oklab(kind @ a), oklab(kind @ b)) > 0.06


# --- In a browser ---

TOUCH = """(() => {
  const box = charts[0].svg.getBoundingClientRect();
  const at = { clientX: box.left + box.width / 2, clientY: box.top + 60 };
  charts[0].svg.dispatchEvent(new PointerEvent("pointermove", at));
  return charts[0].tip.textContent;
})()"""


@pytest.mark.slow
def test_a_browser_shows_it(study, tmp_path):
    long = "아주_긴_이름" * 12
    write(tmp_path / long, init="/한/" + "x" * 300, **{"data__source": [EVIL] * 9})
    out = tmp_path / "page.html"
    assert main(["report", str(study), str(tmp_path / long), f"--out={out}"]) == 0
    with chromium(tmp_path / "profile") as browser:
        grounds = set()
        for width, scheme in itertools.product((1280, 390), ("light", "dark")):
            browser.show(out, width, scheme)
            page = "document.documentElement"
            assert browser.evaluate(f"{page}.scrollWidth") <= width
            ground = "getComputedStyle(document.body).backgroundColor"
            grounds.add(browser.evaluate(ground))
            lines = "document.querySelectorAll('figure:first-child .line').length"
            assert browser.evaluate(lines) == 12
            told = browser.evaluate(TOUCH)
            assert "held out" in told and "low, seed 0" in told
            assert browser.evaluate(f"{page}.scrollWidth") <= width
            browser.evaluate("document.querySelector('[data-runs=\"1\"]').click()")
            assert browser.evaluate(lines) == 10
            browser.evaluate("document.querySelector('[value=none]').click()")
            assert browser.evaluate(lines) == 0
            browser.evaluate("document.querySelector('[data-runs=\"0 1 2\"]').click()")
            browser.evaluate("document.querySelector('[value=tokens]').click()")
            assert browser.evaluate(lines) == 6
            assert "useful tokens" in browser.evaluate(TOUCH)
        assert len(grounds) == 2
        assert not browser.told("Runtime.exceptionThrown")
        assert not browser.told("Log.entryAdded")
        asked = browser.told("Network.requestWillBeSent")
        assert {one["request"]["url"] for one in asked} == {out.as_uri()}
