"""The bundle: whole or not at all, and nothing in it believed unchecked."""

import errno
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from onnx_models import conv_net, report_of, write_bundle

from mdprune_deploy import bundle as bundles
from mdprune_deploy.bundle import BundleWriter, read_bundle
from mdprune_deploy.errors import BundleError, UsageError

Tree = dict[str, Any]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "out", {"first": conv_net(seed=1), "se cond": conv_net(seed=2)})
    return tmp_path / "out"


def write_empty(path: Path, overwrite: bool = False, text: str = "x") -> None:
    with BundleWriter(path, overwrite) as writer:
        (writer.root / "native").mkdir()
        (writer.root / "native/plan.bin").write_text(text)
        writer.finish(report_of({}), {}, {"mdprune": "0"})


def contents(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*"))


# --- what is written ------------------------------------------------------------------------------


def test_manifest_holds_the_report_and_every_file(bundle: Path) -> None:
    tree = json.loads((bundle / "manifest.json").read_text())
    report = json.loads(json.dumps(report_of({"first": 0, "se cond": 0}).to_json()))
    assert report.pop("seconds") == 1.5
    assert tree["seconds"] is None, "the same input gives the same bytes"
    assert report.items() <= tree.items()
    assert tree["version"] == 1 and tree["format"] == "mdprune-bundle"
    files = {path for path in contents(bundle) if (bundle / path).is_file()}
    assert tree["files"].keys() == files - {"manifest.json"}
    for path, entry in tree["files"].items():
        data = (bundle / path).read_bytes()
        assert entry == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    model = tree["models"]["se cond"]
    assert model["labels"] is None and tree["models"]["first"]["labels"][0] == "ant"
    assert model["inputs"] == [{"name": "image", "shape": [1, 3, 16, 16], "dtype": "float32"}]
    assert model["dynamic_batch"] is False
    assert model["targets"]["onnx"]["portable"] == "onnx/se_cond.onnx"
    assert model["targets"]["onnx"]["weights"] == "onnx/weights.bin"


def test_reading_gives_back_what_was_written(bundle: Path) -> None:
    found = read_bundle(bundle)
    found.check_hashes()
    expected = report_of({"first": 0, "se cond": 0})
    assert found.manifest.report.domains == expected.domains
    assert found.manifest.report.held == expected.held
    assert found.manifest.report.seconds is None
    assert found.manifest.to_text() == (bundle / "manifest.json").read_text()


def test_same_models_give_the_same_manifest(bundle: Path, tmp_path: Path) -> None:
    write_bundle(tmp_path / "again", {"first": conv_net(seed=1), "se cond": conv_net(seed=2)})
    assert (tmp_path / "again/manifest.json").read_text() == (bundle / "manifest.json").read_text()


def test_directory_has_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    write_empty(tmp_path / "out")
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


# --- whole or not at all --------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("a bug"), SystemExit(1)])
def test_error_or_interrupt_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), BundleWriter(tmp_path / "out") as writer:
        (writer.root / "half").write_text("x")
        raise error
    assert contents(tmp_path) == []


def test_leaving_without_finish_leaves_nothing(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "out") as writer:
        (writer.root / "half").write_text("x")
    assert contents(tmp_path) == []


def test_interrupt_while_replacing_keeps_the_old_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_empty(tmp_path / "out", text="old")
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if self.suffix == ".partial":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_empty(tmp_path / "out", overwrite=True, text="new")
    assert (tmp_path / "out/native/plan.bin").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_signal_in_the_middle_of_a_process_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom mdprune_deploy.bundle import BundleWriter\n"
        "with BundleWriter(sys.argv[1]) as writer:\n"
        "    (writer.root / 'half').write_text('x')\n    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert len(contents(tmp_path)) == 2
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) != 0
    assert contents(tmp_path) == []


def test_existing_output_needs_force(bundle: Path) -> None:
    before = contents(bundle)
    with pytest.raises(UsageError, match=r"out exists; --force replaces a bundle"):
        write_empty(bundle)
    assert contents(bundle) == before
    write_empty(bundle, overwrite=True)
    assert contents(bundle) == ["manifest.json", "native", "native/plan.bin"]
    assert [path.name for path in bundle.parent.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        (None, "it has no manifest.json of an mdprune bundle"),
        ("{", "it has no manifest.json of an mdprune bundle"),
        ("[1]", "it has no manifest.json of an mdprune bundle"),
        ('{"format": "webapp", "files": {}}', "it has no manifest.json of an mdprune bundle"),
        ('{"format": "mdprune-bundle", "files": {}}', "it holds 'thesis.tex', which is not part"),
    ],
)
def test_force_never_removes_what_is_not_a_bundle(
    tmp_path: Path, manifest: str | None, reason: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    if manifest is not None:
        (out / "manifest.json").write_text(manifest)
    with pytest.raises(UsageError, match=f"out is not replaced: {reason}"):
        write_empty(out, overwrite=True)
    assert (out / "thesis.tex").read_text() == "years of work"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_force_replaces_an_empty_directory_and_refuses_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write_empty(tmp_path / "out", overwrite=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="file is not replaced: it is not a directory"):
        write_empty(tmp_path / "file", overwrite=True)
    assert (tmp_path / "file").read_text() == "x"


def test_force_replaces_a_bundle_behind_a_link(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(bundle)
    write_empty(tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink() and (bundle / "native").is_dir()


def test_output_without_a_parent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot write .*/no/out: .*/no is not a directory"):
        write_empty(tmp_path / "no/out")


def test_unwritable_parent_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(UsageError, match=r"cannot write .*/out: Permission denied"):
        write_empty(tmp_path / "out")


def test_full_disk_is_reported_and_leaves_nothing(tmp_path: Path) -> None:
    models = {"first": conv_net(seed=1), "second": conv_net(seed=2, width=64)}
    write_bundle(tmp_path / "out", models)
    full = (tmp_path / "out/onnx/weights.bin").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for share in (0.02, 0.2, 0.5, 0.9):
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(full * share), hard))
            with pytest.raises(UsageError, match=r"cannot write .*/other: (File too|ONNX Runtime)"):
                write_bundle(tmp_path / "other", models)
            assert [path.name for path in tmp_path.iterdir()] == ["out"]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)


def test_os_errors_about_other_files_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), BundleWriter(tmp_path / "out"):
        (tmp_path / "model.pt").read_bytes()
    with pytest.raises(BrokenPipeError), BundleWriter(tmp_path / "out"):
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


# --- what is read ---------------------------------------------------------------------------------


def _set(*keys: Any, value: Any) -> Callable[[Tree], None]:
    def change(tree: Any) -> None:
        for key in keys[:-1]:
            tree = tree[key]
        tree[keys[-1]] = value

    return change


def _drop(*keys: Any) -> Callable[[Tree], None]:
    def change(tree: Any) -> None:
        for key in keys[:-1]:
            tree = tree[key]
        del tree[keys[-1]]

    return change


ONNX = ("models", "first", "targets", "onnx")
WEIGHTS = ("files", "onnx/weights.bin")
ENTRY = {"size": 1, "sha256": "0" * 64}

WRONG_MANIFESTS = [
    (_drop("format"), "not a manifest of an mdprune bundle"),
    (_set("version", value=2), "bundle version 2; this mdprune reads 1"),
    (_drop("version"), "the top level has no field 'version'"),
    (_set("version", value=True), "version is true, expected an integer of at least 0"),
    (_set("domains", value=[]), r"domains is \[\], expected an object"),
    (_set("domains", "first", "macs_dense", value=-1), "domains.first.macs_dense is -1, expected"),
    (_set("domains", "first", "max_abs_error", value="0"), 'max_abs_error is "0", expected a nu'),
    (_drop("domains", "first", "layers"), "domains.first has no field 'layers'"),
    (
        _set("domains", "first", "layers", 0, "kind", value=3),
        r"layers\[0\].kind is 3, expected a t",
    ),
    (_drop("domains", "first"), "models and domains do not name the same domains"),
    (_set("held", value={}), "held is {}, expected a list"),
    (_set("params_union", value=1.5), "params_union is 1.5, expected an integer"),
    (_set("seconds", value="now"), 'seconds is "now", expected a number'),
    (_set("versions", "mdprune", value=1), "versions.mdprune is 1, expected a text"),
    (_set("models", "first", "labels", value=[1]), r"models.first.labels\[0\] is 1, expected a t"),
    (_set("models", "first", "dynamic_batch", value=0), "dynamic_batch is 0, expected true or"),
    (_set("models", "first", "inputs", 0, "shape", value=[-1]), r"shape\[0\] is -1, expected an i"),
    (
        _set(*ONNX, "portable", value="/etc/passwd"),
        "portable names '/etc/passwd', which 'files' do",
    ),
    (_set(*ONNX, "mapped", 0, "file", value="../x"), r"mapped\[0\].file names '../x', which 'file"),
    (_set(*ONNX, "mapped", 0, "block", value=0), r"mapped\[0\].block is 0, expected an integer of"),
    (_set(*WEIGHTS, "size", value=-5), "files.onnx/weights.bin.size is -5, expected"),
    (_set(*WEIGHTS, "sha256", value="abc"), "sha256 is 'abc', expected 64 hexadecimal digits"),
    (_set("files", "/etc/passwd", value=ENTRY), "files names '/etc/passwd', no plain relative"),
    (_set("files", "../x", value=ENTRY), "files names '../x', no plain relative path"),
    (_set("files", "onnx/../../x", value=ENTRY), "files names 'onnx/../../x', no plain relative"),
    (_set("files", "a//b", value=ENTRY), "files names 'a//b', no plain relative path"),
    (_set("files", "C:\\x", value=ENTRY), "no plain relative path"),
    (_set("files", "manifest.json", value=ENTRY), "files names 'manifest.json', no plain"),
    (_set("files", "", value=ENTRY), "files names '', no plain relative path"),
    (_set("files", "nul\0", value=ENTRY), "no plain relative path"),
    (_set("files", "onnx/missing", value=ENTRY), "onnx/missing: No such file or directory"),
    (_set("files", "onnx", value=ENTRY), "onnx is not a plain file inside the bundle"),
]


@pytest.mark.parametrize(("change", "message"), WRONG_MANIFESTS)
def test_wrong_manifest_is_refused_by_field(
    bundle: Path, change: Callable[[Tree], None], message: str
) -> None:
    tree = json.loads((bundle / "manifest.json").read_text())
    change(tree)
    (bundle / "manifest.json").write_text(json.dumps(tree))
    with pytest.raises(BundleError, match=message) as caught:
        read_bundle(bundle)
    assert str(bundle) in str(caught.value) and caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("null", "not a manifest of an mdprune bundle"),
        ('{"format": 1, "format": 2}', "an object names one key twice"),
        ('{"format": NaN}', "NaN is no JSON number"),
        ("[" * 100_000, "not valid JSON"),
        ('{"version": 1' + "0" * 5000 + "}", "not valid JSON"),
        ("\udcff", "can't decode byte"),
    ],
)
def test_manifest_that_is_no_json_object_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(BundleError, match=message):
        read_bundle(tmp_path)


def test_huge_manifest_is_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles.manifests, "MAX_BYTES", 100)
    (tmp_path / "manifest.json").write_text(" " * 101)
    with pytest.raises(BundleError, match=r"manifest.json is larger than 100 bytes"):
        read_bundle(tmp_path)


def test_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"nowhere is not a bundle: .*No such file"):
        read_bundle(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match=r"file is not a bundle: .*Not a directory"):
        read_bundle(tmp_path / "file")


def test_truncated_file_is_refused_by_name(bundle: Path) -> None:
    weights = bundle / "onnx/weights.bin"
    size = weights.stat().st_size
    os.truncate(weights, size - 1)
    message = rf"onnx/weights.bin has {size - 1} bytes, expected {size}"
    with pytest.raises(BundleError, match=message):
        read_bundle(bundle)


def test_link_out_of_the_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    weights = bundle / "onnx/weights.bin"
    weights.rename(tmp_path / "elsewhere")
    weights.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=r"onnx/weights.bin is not a plain file inside"):
        read_bundle(bundle)
    weights.unlink()
    (tmp_path / "elsewhere").rename(weights)
    (bundle / "onnx").rename(tmp_path / "moved")
    (bundle / "onnx").symlink_to(tmp_path / "moved")
    with pytest.raises(BundleError, match=r"is not a plain file inside the bundle"):
        read_bundle(bundle)


def test_flipped_bit_is_found_by_its_hash(bundle: Path) -> None:
    weights = bundle / "onnx/weights.bin"
    data = bytearray(weights.read_bytes())
    data[100] ^= 1
    weights.write_bytes(data)
    found = read_bundle(bundle)
    with pytest.raises(BundleError, match=r"onnx/weights.bin: sha256 is .* changed or damaged"):
        found.check_hashes()


def test_unknown_keys_and_targets_are_ignored(bundle: Path) -> None:
    tree = json.loads((bundle / "manifest.json").read_text())
    tree["models"]["first"]["targets"] = {"later": {"plan": "x"}}
    tree["later"] = 1
    (bundle / "manifest.json").write_text(json.dumps(tree))
    assert read_bundle(bundle).manifest.models["first"].onnx is None
