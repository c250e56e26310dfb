"""The command line: result on stdout, one message on stderr, exit code, nothing left behind."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import dense_onnx
import numpy as np
import pytest
import torch
from onnx import helper
from PIL import Image
from tiny_checkpoints import DOMAINS, LABELS, bundle, checkpoint, network, scores
from typer.testing import CliRunner, Result

import mdprune_deploy as mdp
from mdprune_deploy.bench import DEFAULT_ENGINE
from mdprune_deploy.bundle import read_bundle
from mdprune_deploy.checkpoint import masks_of
from mdprune_deploy.cli import app
from mdprune_deploy.commands import common

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def mdprune(*arguments: object) -> Result:
    """Runs a command in this process; stdout and stderr apart."""
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(a) for a in arguments])


def process(*arguments: object, **options: object) -> subprocess.Popen[str]:
    """Starts a command in a process of its own."""
    code = "from mdprune_deploy.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, **options,
    )  # fmt: skip


def refused(result: Result, code: int, *parts: str) -> None:
    """Asserts an exit code and a message on stderr that has all parts, and nothing else."""
    assert result.exit_code == code, result.stderr
    assert result.stdout == ""
    assert result.stderr.startswith("mdprune: ") and result.stderr.count("\n") == 1
    for part in parts:
        assert part in result.stderr
    assert "Traceback" not in result.stderr


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# What works


def test_compile_writes_a_bundle_and_prints_its_figures(tmp_path: Path) -> None:
    result = mdprune("compile", checkpoint(), "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    for part in (*DOMAINS, "largest error"):
        assert part in result.stdout
    report = read_bundle(tmp_path / "out").manifest.report
    assert f"use {report.params_union:,} weights" in result.stdout
    assert result.stderr == "" and left_in(tmp_path) == ["out"]


def test_compile_json_is_the_report(tmp_path: Path) -> None:
    result = mdprune("compile", checkpoint(), "-o", tmp_path / "out", "--json")
    tree = json.loads(result.stdout)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert tree.pop("seconds") > 0
    assert all(tree[key] == manifest[key] for key in tree)
    assert set(tree["domains"]) == set(DOMAINS) and tree["version"] == 1


def test_force_replaces_a_bundle_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert mdprune("compile", checkpoint(), "-o", out).exit_code == 0
    before = (out / "onnx" / "weights.bin").stat().st_ino
    refused(mdprune("compile", checkpoint(), "-o", out), 2, "exists; --force replaces a bundle")
    assert (out / "onnx" / "weights.bin").stat().st_ino == before
    assert mdprune("compile", checkpoint(), "-o", out, "--force").exit_code == 0
    assert (out / "onnx" / "weights.bin").stat().st_ino != before
    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("ten years")
    refused(mdprune("compile", checkpoint(), "-o", foreign, "--force"), 2, "is not replaced")
    assert (foreign / "thesis.tex").read_text() == "ten years"
    assert left_in(tmp_path) == ["mine", "out"]


def test_budget_cuts_scores_and_fit_cuts_switches(tmp_path: Path) -> None:
    cut = mdprune(
        "compile", checkpoint("scores"), "-o", tmp_path / "a", "--budget", "0.5", "--json"
    )
    magnitude = ["--budget", "0.5", "--fit", "magnitude", "--metric", "switches", "--json"]
    switches = mdprune("compile", checkpoint(), "-o", tmp_path / "b", *magnitude)
    for result in (cut, switches):
        for domain in json.loads(result.stdout)["domains"].values():
            (layer,) = (x for x in domain["layers"] if x["name"] == "conv2.weight")
            assert layer["params_used"] == layer["params_dense"] // 2


@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        (["inspect", "MODEL"], {"source", "domains", "layers", "held", "params_union"}),
        (["inspect", "BUNDLE"], {"source", "domains", "layers", "held", "bytes_shared"}),
        (["verify", "BUNDLE", "--against", "MODEL"], {"domains"}),
        (["bench", "BUNDLE", "--seconds", "0.01"], {"domains", "runs", "machine", "memory"}),
        (["run", "BUNDLE", "X", "--domain", "first"], {"domain", "top", "outputs", "variant"}),
    ],
)
def test_json_is_all_that_stdout_holds(
    tmp_path: Path, arguments: list[str], keys: set[str]
) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 8, 8), np.float32))
    places = {"MODEL": checkpoint(), "BUNDLE": bundle(), "X": tmp_path / "x.npy"}
    result = mdprune(*(places.get(a, a) for a in arguments), "--json")
    assert result.exit_code == 0, result.stderr
    tree = json.loads(result.stdout)
    assert tree["version"] == 1 and keys <= set(tree)


def test_inspect_prints_layers_domains_and_what_is_shared() -> None:
    result = mdprune("inspect", checkpoint())
    on = [scores(index) > 0 for index in range(2)]
    union, common = (on[0] | on[1]).sum() * 144, (on[0] & on[1]).sum() * 144
    (line,) = (x for x in result.stdout.splitlines() if "conv2.weight" in x)
    assert [cell.strip() for cell in line.split("│")[1:-1]] == [
        "conv2.weight", "2,304", "75.0%", "75.0%", f"{union:,}", f"{common:,}",
    ]  # fmt: skip
    assert "any domain" in result.stdout and "No masked channel is held" in result.stdout


def test_inspect_counts_what_a_budget_would_leave() -> None:
    result = mdprune("inspect", checkpoint("scores"), "--budget", "0.25")
    (line,) = (x for x in result.stdout.splitlines() if "conv2.weight" in x)
    assert line.count("25.0%") == 2


def test_inspect_plots(tmp_path: Path) -> None:
    result = mdprune("inspect", checkpoint(), "--plot", tmp_path / "p.png", "--json")
    json.loads(result.stdout)
    assert result.stderr == f"wrote {tmp_path / 'p.png'}\n"
    with Image.open(tmp_path / "p.png") as image:
        assert image.format == "PNG" and image.width > 500
    refused(
        mdprune("inspect", bundle(), "--plot", tmp_path / "q.png"), 2, "--plot needs the checkpoint"
    )
    refused(mdprune("inspect", checkpoint(), "--plot", tmp_path / "q.txt"), 2, ".png, .pdf, .svg")
    refused(mdprune("inspect", checkpoint(), "--plot", "/proc/q.png"), 2, "cannot write /proc/q")
    assert left_in(tmp_path) == ["p.png"]


def test_run_prints_the_best_classes_of_an_image(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    result = mdprune("run", bundle(), "--domain", "second", tmp_path / "x.png", "--json")
    tree = json.loads(result.stdout)
    x = (pixels.transpose(2, 0, 1)[None] / 255).astype(np.float32)
    expected = mdp.reference(mdp.load_checkpoint(checkpoint()), "second")(x)
    assert isinstance(expected, np.ndarray)
    best = [LABELS[index] for index in np.argsort(-expected[0])]
    assert [entry["label"] for entry in tree["top"][0]] == best
    # 1e-5 is the contract's bound for a compiled model.
    np.testing.assert_allclose(tree["outputs"][0]["values"], expected, rtol=0, atol=1e-5)
    table = mdprune("run", bundle(), "--domain", "second", tmp_path / "x.png").stdout
    assert [line.split("│")[1].strip() for line in table.splitlines() if "│" in line] == best


def test_run_writes_the_output(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((1, 3, 8, 8))
    np.save(tmp_path / "x.npy", x)  # float64: cast to what the network takes
    out = tmp_path / "y.npy"
    result = mdprune("run", bundle(), "--domain", "first", tmp_path / "x.npy", "--output", out)
    assert result.exit_code == 0 and f"wrote {out}" in result.stdout
    engine = mdp.load(bundle(), "first", engine=DEFAULT_ENGINE)
    np.testing.assert_array_equal(np.load(out), engine(x.astype(np.float32)))


def test_bench_prints_a_row_per_domain_and_the_ratio(tmp_path: Path) -> None:
    result = mdprune("bench", bundle(), "--seconds", "0.01", "--against", checkpoint())
    assert result.exit_code == 0, result.stderr
    assert "ratio" in result.stdout and all(name in result.stdout for name in DOMAINS)
    assert f"memory of 2 domains, {DEFAULT_ENGINE}" in result.stdout
    quick = ("--seconds", "0.01", "--latency-only", "--json")
    one = json.loads(mdprune("bench", bundle(), *quick, "--domain", "second").stdout)
    assert set(one["domains"]) == {"second"} and one["memory"] is None and one["operators"] == []
    page = tmp_path / "bench.html"
    assert mdprune("bench", bundle(), *quick, "--html", page).stderr.endswith(f"wrote {page}\n")
    assert "Benchmark of bundle" in page.read_text()
    both = mdprune("bench", bundle(), *quick, "--engine", "onnxruntime", "--engine", "native:cpu")
    assert json.loads(both.stdout)["settings"]["engines"] == ["onnxruntime", "native:cpu"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--html", "nowhere/bench.html"), "cannot write nowhere/bench.html: nowhere is no direc"),
        (("--engine", "native:"), "ENGINE[:DEVICE[:PRECISION]] is needed"),
        (("--peak", "0"), "peak is 0.0, a number above 0 is needed"),
        (("--bandwidth", "inf"), "bandwidth is inf, a number above 0 is needed"),
        (("--runs", "0"), "runs is 0, at least 1 is needed"),
    ],
)
def test_what_bench_refuses(options: tuple[str, ...], message: str) -> None:
    refused(mdprune("bench", bundle(), "--latency-only", *options), 2, message)


def test_pack_makes_a_checkpoint_that_compiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = network().state_dict()
    state["conv2.switches"] = torch.stack([scores(0), scores(1)])
    torch.save(state, tmp_path / "w.pth")
    options = ["--model", "tiny_checkpoints:network", "--weights", tmp_path / "w.pth"]
    options += ["--switches", "{module}.switches", "--input", "1,3,8,8"]
    options += ["--domain", "first", "--domain", "second"]
    monkeypatch.chdir(Path(__file__).parent)
    result = mdprune("pack", *options, "-o", tmp_path / "m.pt", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["masks"] == {"first": 1, "second": 1}
    packed = mdp.load_checkpoint(tmp_path / "m.pt")
    (mask,) = masks_of(packed.domains["second"].masks["conv2"])
    assert torch.equal(mask.values, scores(1))
    assert mdprune("compile", tmp_path / "m.pt", "-o", tmp_path / "out").exit_code == 0
    refused(
        mdprune("pack", *options, "--ignore", "x", "-o", "/proc/m.pt"), 2, "cannot write checkpoint"
    )


def test_a_dense_onnx_file_goes_the_same_way(tmp_path: Path) -> None:
    model = dense_onnx.save(tmp_path / "dense.onnx", dense_onnx.unfolded(), dense_onnx.weights())
    masks, packed, out = (tmp_path / name for name in ("masks.npz", "m.pt", "out"))
    np.savez(masks, **{"first/in/Last": dense_onnx.HALF, "second/labels": np.array(list("abcd"))})
    result = mdprune("pack", "--onnx", model, "--masks", masks, "-o", packed, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == {
        "version": 1, "output": str(packed), "domains": ["first", "second"],
        "masks": {"first": 1, "second": 0}, "state": {"first": 0, "second": 0}, "shared": 7,
        "ignored": [], "dynamic_batch": True,
    }  # fmt: skip
    image = tmp_path / "x.npy"
    np.save(image, np.ones((1, 3, 8, 8), np.float32))
    for command in (
        ("compile", packed, "-o", out),
        ("inspect", packed),
        ("inspect", out),
        ("verify", out, "--against", packed),
        ("run", out, "--domain", "second", image),
        ("bench", out, "--against", packed, "--seconds", "0.01", "--latency-only"),
    ):
        result = mdprune(*command, "--json")
        assert result.exit_code == 0, result.stderr
        json.loads(result.stdout)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ((), 2, "pack needs --model, --weights, --switches, or --onnx and --masks"),
        (("--onnx", "d.onnx"), 2, "--onnx needs --masks, a file with every domain's masks"),
        (("--masks", "m.npz"), 2, "--masks goes with --onnx; of a state dict --switches names"),
        (("--onnx", "d.onnx", "--masks", "m.npz", "--model", "a:b"), 2, "--model does not go with"),
        (("--onnx", "d.onnx", "--masks", "m.npz", "--key", "a"), 2, "--key does not go with"),
        (("--onnx", "d.onnx", "--masks", "none.npz"), 3, "masks 'none.npz': cannot be read: No su"),
        (("--onnx", "none.onnx", "--masks", "m.npz"), 3, "ONNX model 'none.onnx': cannot be read"),
        (("--onnx", "m.npz", "--masks", "m.npz"), 3, "ONNX model 'm.npz': is no valid ONNX"),
        (("--onnx", "gelu.onnx", "--masks", "m.npz"), 6, "com.microsoft::Gelu (node 'Middle') is"),
    ],
)  # fmt: skip
def test_what_pack_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], code: int,
    message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    np.savez("m.npz", **{"d/in/Last": dense_onnx.HALF})
    gelu = [helper.make_node("Gelu", ["c"], ["d"], "Middle", domain="com.microsoft")]
    for name, nodes in (("d", dense_onnx.unfolded()), ("gelu", dense_onnx.unfolded(lambda: gelu))):
        dense_onnx.save(
            tmp_path / f"{name}.onnx", nodes, dense_onnx.weights(), extra=("com.microsoft",)
        )
    refused(mdprune("pack", *options, "-o", "new.pt"), code, message)
    assert left_in(tmp_path) == ["d.onnx", "gelu.onnx", "m.npz"]


def test_help_and_version() -> None:
    shown = mdprune("--help").stdout
    assert all(name in shown for name in ("compile", "inspect", "verify", "run", "bench", "pack"))
    assert mdprune("--version").stdout.startswith("mdprune 0.")


# Wrong usage


@pytest.mark.parametrize("budget", ["0", "1.5", "nan", "-0.5", "inf"])
def test_a_budget_outside_its_range(tmp_path: Path, budget: str) -> None:
    result = mdprune("compile", checkpoint(), "-o", tmp_path / "out", f"--budget={budget}")
    refused(result, 2, "budget", str(float(budget)))
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["compile", "x.pt"],
        ["compile", "-o", "out"],
        ["compile", "x.pt", "-o", "out", "--budget", "half"],
        ["compile", "x.pt", "-o", "out", "--metric", "joules"],
        ["compile", "x.pt", "-o", "out", "--fit", "luck"],
        ["verify", "out"],
        ["run", "out", "x.npy"],
        ["bench", "out", "--threads", "many"],
        ["fly"],
    ],
)
def test_what_the_parser_refuses(arguments: list[str]) -> None:
    result = mdprune(*arguments)
    assert result.exit_code == 2 and result.stdout == ""
    assert "Usage: " in result.stderr and "Traceback" not in result.stderr


def test_unknown_names() -> None:
    x = "x.npy"
    refused(
        mdprune("compile", checkpoint(), "-o", "out", "--target", "onnx,coreml"),
        2,
        "unknown target 'coreml'; there are onnx, native, tensorrt",
    )
    refused(mdprune("compile", checkpoint(), "-o", "out", "--target", ""), 2, "no target was named")
    refused(mdprune("run", bundle(), "--domain", "third", x), 2, "unknown domain 'third'", "second")
    refused(mdprune("bench", bundle(), "--domain", "third"), 2, "unknown domain 'third'")
    refused(mdprune("bench", bundle(), "--engine", "steam"), 2, "unknown engine 'steam'")
    refused(mdprune("bench", bundle(), "--threads", "0"), 2, "threads is 0, at least 1 is needed")
    refused(mdprune("bench", bundle(), "--seconds", "nan"), 2, "seconds is nan")


def test_a_missing_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mdprune_deploy.engines.native.library_path", lambda: None)
    refused(mdprune("bench", bundle(), "--engine", "native"), 7, "native")
    refused(mdprune("bench", bundle(), "--engine", "tensorrt"), 7, "tensorrt")
    out = tmp_path / "out"
    refused(
        mdprune("compile", checkpoint(), "-o", out, "--target", "tensorrt"), 7, "native runtime"
    )


# Output that cannot be written


@pytest.mark.parametrize("place", ["missing/out", "file/out", "/proc/out"])
def test_a_place_that_cannot_be_written(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    refused(mdprune("compile", checkpoint(), "-o", tmp_path / place), 2, "cannot write", place)
    assert left_in(tmp_path) == ["file"]


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    child = process("compile", checkpoint(), "-o", tmp_path / "out", preexec_fn=small_files)
    stdout, stderr = child.communicate(timeout=120)
    assert (child.returncode, stdout) == (2, "")
    assert stderr.startswith(f"mdprune: cannot write {tmp_path / 'out'}: ")
    assert stderr.count("\n") == 1 and left_in(tmp_path) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_leaves_nothing(tmp_path: Path, number: int, code: int) -> None:
    child = process("compile", checkpoint(), "-o", tmp_path / "out", "--json")
    wait_for(lambda: bool(left_in(tmp_path)), child)
    child.send_signal(number)
    stdout, stderr = child.communicate(timeout=120)
    assert (child.returncode, stdout) == (code, "")
    word = "interrupted" if number == signal.SIGINT else "terminated"
    assert stderr == f"mdprune: {word}\n"
    assert left_in(tmp_path) == []


def test_an_interrupt_that_a_library_reports_as_an_error_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lost(*_: object) -> None:
        try:
            common.stop(signal.SIGINT, None)
        except KeyboardInterrupt as error:
            raise mdp.CheckpointError("is truncated or corrupt") from error

    monkeypatch.setattr(common, "_received", [])
    monkeypatch.setattr("mdprune_deploy.commands.inspect.fitted", lost)
    result = mdprune("inspect", checkpoint())
    refused(result, 130, "mdprune: interrupted\n")


def wait_for(happened: Callable[[], bool], child: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + 120
    while not happened():
        assert child.poll() is None and time.monotonic() < limit
        time.sleep(0.001)


def test_a_reader_that_goes_away_is_no_traceback(tmp_path: Path) -> None:
    child = process("inspect", bundle())
    assert child.stdout is not None and child.stderr is not None
    child.stdout.close()
    assert child.stderr.read() == ""
    assert child.wait(timeout=120) == 1


# Input that is wrong


def damaged(data: bytes) -> bytes:
    middle = len(data) * 3 // 4
    return data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]


@pytest.mark.parametrize("command", ["compile", "inspect", "verify", "bench"])
@pytest.mark.parametrize("kind", ["missing", "damaged", "truncated", "pickle", "empty"])
def test_a_checkpoint_that_cannot_be_read(tmp_path: Path, kind: str, command: str) -> None:
    path, data = tmp_path / "m.pt", checkpoint().read_bytes()
    if kind == "pickle":
        torch.save({"model": network()}, path)
    elif kind != "missing":
        path.write_bytes({"damaged": damaged(data), "truncated": data[:900]}.get(kind, b""))
    arguments = {
        "compile": ["compile", path, "-o", tmp_path / "out"],
        "inspect": ["inspect", path],
        "verify": ["verify", bundle(), "--against", path],
        "bench": ["bench", bundle(), "--against", path],
    }
    refused(mdprune(*arguments[command]), 3, f"checkpoint '{path}'")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["inspect", "verify", "run", "bench"])
def test_a_directory_that_is_no_bundle(tmp_path: Path, command: str) -> None:
    more = {"verify": ["--against", checkpoint()], "run": ["x.npy", "--domain", "first"]}
    refused(mdprune(command, tmp_path, *more.get(command, [])), 3, f"{tmp_path} is not a bundle")


def test_switches_outside_the_budget_stop_with_the_figures(tmp_path: Path) -> None:
    result = mdprune("compile", checkpoint(), "-o", tmp_path / "out", "--budget", "0.5")
    assert result.exit_code == 4 and result.stdout == ""
    assert all(name in result.stderr for name in DOMAINS)
    assert result.stderr.count("75") == 2 and "--fit" in result.stderr
    assert left_in(tmp_path) == []


def test_an_unsupported_graph_is_named(tmp_path: Path) -> None:
    result = mdprune("compile", checkpoint("unsupported"), "-o", tmp_path / "out")
    refused(result, 6, "CumSum", "node_cumsum")
    assert left_in(tmp_path) == []


def test_inputs_that_cannot_be_run(tmp_path: Path) -> None:
    def run(name: str, *more: object) -> Result:
        return mdprune("run", bundle(), "--domain", "first", tmp_path / name, *more)

    np.save(tmp_path / "small.npy", np.zeros((1, 3, 7, 7), np.float32))
    np.save(tmp_path / "object.npy", np.array([{}]), allow_pickle=True)
    np.save(tmp_path / "int.npy", np.zeros((1, 3, 8, 8), np.int32))
    np.save(tmp_path / "good.npy", np.zeros((1, 3, 8, 8), np.float32))
    (tmp_path / "text.npy").write_text("hello")
    (tmp_path / "text.png").write_text("hello")
    refused(run("small.npy"), 2, "shape is (1, 3, 7, 7), it takes (any, 3, 8, 8)")
    refused(run("int.npy"), 2, "dtype is int32, it takes float32")
    refused(run("object.npy"), 3, "object.npy: not a NumPy array", "allow_pickle=False")
    refused(run("text.npy"), 3, "text.npy: not a NumPy array")
    refused(run("text.png"), 3, "text.png: neither a PNG or JPEG image nor a .npy file")
    refused(run("none.npy"), 3, "none.npy: No such file")
    refused(run("none.png"), 3, "none.png: No such file")
    refused(run("good.npy", tmp_path / "good.npy"), 2, "takes 1 inputs")
    refused(run("good.npy", "--output", tmp_path / "y.txt"), 2, "must end in .npy or .npz")
    refused(run("good.npy", "--output", "/proc/y.npy"), 2, "cannot write /proc/y.npy")
    refused(run("good.npy", "--mean", "grey"), 2, "--mean 'grey' is not a list")


def test_a_bug_asks_for_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("index out of range")

    monkeypatch.setattr("mdprune_deploy.commands.inspect.fitted", fail)
    result = mdprune("inspect", checkpoint())
    assert result.exit_code == 1 and result.stdout == ""
    assert result.stderr.startswith("mdprune: this is a bug in mdprune: RuntimeError: index out")
    assert "Please report it" in result.stderr and "Traceback" not in result.stderr
    monkeypatch.setenv("MDPRUNE_TRACEBACK", "1")
    assert isinstance(mdprune("inspect", checkpoint()).exception, RuntimeError)


def test_progress_is_for_terminals_only(capfd: pytest.CaptureFixture[str]) -> None:
    with common.progress_bar("working") as tick:
        tick("something", 1, 2)
    assert capfd.readouterr() == ("", "")
