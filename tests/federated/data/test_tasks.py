"""Loaders against the real files where they are, and against tiny self-made ones everywhere."""

import gzip
import hashlib
import lzma
import pickle
import struct
import sys
from collections import Counter

import numpy as np
import pytest
import torch

from gradwire.errors import BackendUnavailable, ConfigError
from gradwire.federated.data.shakespeare import speaker_texts
from gradwire.federated.data.tasks import TASKS, load_task

MNIST_FILES = {
    "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
}
CIFAR_MD5 = [
    "5dd7e06a14cb22eb9f671a540d1b7c25",
    "5ea93a67294ea407fff1d09f752e9692",
    "942cd6a4bcdd0dd3c604fbe906cb4421",
    "ae636b3ba5c66a11e91e8cb52e771fcb",
    "53f37980c15c3d472c316c40844f3f0d",
]


@pytest.fixture(autouse=True)
def _no_default_folder(monkeypatch):
    monkeypatch.delenv("GRADWIRE_DATA", raising=False)


def md5(data):
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


# --- real files ---


def test_real_mnist(data_dir):
    if not (data_dir / "mnist").is_dir():
        pytest.skip("real data not found: set GRADWIRE_DATA")
    for name, expected in MNIST_FILES.items():
        assert md5((data_dir / "mnist" / f"{name}.gz").read_bytes()) == expected
    task = load_task("mnist", data_dir)
    assert task.train_inputs.shape == (60_000, 1, 28, 28)
    assert task.test_inputs.shape == (10_000, 1, 28, 28)
    assert task.train_inputs.dtype == torch.float32
    # the published label counts of MNIST
    assert torch.bincount(task.train_targets).tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949,
    ]  # fmt: skip
    assert torch.bincount(task.test_targets).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
    ]  # fmt: skip
    assert (task.test_name, task.num_classes, task.groups, task.default_model) == ("test", 10, None, "cnn")
    assert abs(float(task.train_inputs.mean())) < 1e-3
    assert abs(float(task.train_inputs.std()) - 1) < 1e-3


@pytest.mark.slow
def test_real_cifar10(data_dir):
    folder = data_dir / "cifar10"
    if not folder.is_dir():
        pytest.skip("real data not found: set GRADWIRE_DATA")
    task = load_task("cifar10", data_dir)
    has_test = any(folder.glob("test_batch.bin*"))
    assert task.test_name == ("test" if has_test else "held-out batch 5")
    assert task.train_inputs.shape == (50_000 if has_test else 40_000, 3, 32, 32)
    assert task.test_inputs.shape == (10_000, 3, 32, 32)
    # undoing the normalisation gives the official bytes back, which pins every pixel, channel and label
    mean = np.float32([0.4914, 0.4822, 0.4465])[:, None, None]
    std = np.float32([0.2470, 0.2435, 0.2616])[:, None, None]
    inputs = torch.cat([task.train_inputs, task.test_inputs]).numpy()[:50_000].reshape(5, 10_000, 3, 32, 32)
    targets = torch.cat([task.train_targets, task.test_targets]).numpy()[:50_000].reshape(5, 10_000, 1)
    for batch in (0, 4):
        pixels = np.rint((inputs[batch] * std + mean) * 255).astype(np.uint8).reshape(10_000, 3072)
        records = np.concatenate([targets[batch].astype(np.uint8), pixels], axis=1)
        assert md5(records.tobytes()) == CIFAR_MD5[batch]
    assert np.bincount(targets.ravel()).tolist() == [5000] * 10


def test_real_shakespeare(data_dir):
    path = data_dir / "shakespeare" / "input.txt"
    if not path.is_file():
        pytest.skip("real data not found: set GRADWIRE_DATA")
    data = path.read_bytes()
    assert md5(data) == "6fb458f1232090904fb40fe944165e91"
    assert len(data) == 1_115_394
    text = data.decode()
    speakers = speaker_texts(text)
    assert len(speakers) == 309
    assert sum(len(spoken) >= 5_000 for spoken in speakers.values()) == 64
    # nothing is lost but names, colons, their newlines and blank lines
    letters = Counter(text) - Counter("".join(speakers.values()))
    labels: Counter[str] = Counter()
    for line in text.split("\n"):
        if line.endswith(":") and line[:-1] in speakers:
            labels.update(line)
    letters.pop("\n")
    assert sum(letters.values()) <= sum(labels.values())

    task = load_task("shakespeare", data_dir)
    assert task.num_classes == len(set(text)) == 65
    assert task.test_name == "held-out tenth"
    characters = sorted(set(text))
    names = list(speakers)
    for row in range(0, len(task.train_inputs), 997):
        window = [*task.train_inputs[row].tolist(), int(task.train_targets[row, -1])]
        spoken = speakers[names[task.groups[row]]]
        at = spoken.find("".join(characters[symbol] for symbol in window))
        assert 0 <= at < 0.9 * len(spoken)
    assert torch.equal(task.train_inputs[:, 1:], task.train_targets[:, :-1])
    assert torch.equal(task.test_inputs[:, 1:], task.test_targets[:, :-1])
    expected = sum(max(0, len(s) - len(s) // 10 - 1) // 64 for s in speakers.values())
    assert len(task.train_inputs) == len(task.groups) == expected
    assert len(task.test_inputs) == sum(max(0, len(s) // 10 - 1) // 64 for s in speakers.values())


# --- digits ---


def test_digits_split_is_stratified_and_complete():
    from sklearn.datasets import load_digits

    task = load_task("digits")
    pixels, labels = load_digits(return_X_y=True)
    assert task.train_inputs.dtype == torch.float32
    assert (float(task.train_inputs.min()), float(task.train_inputs.max())) == (0.0, 1.0)
    together = torch.cat([task.train_inputs, task.test_inputs]).numpy() * 16
    everyone = np.concatenate([together, torch.cat([task.train_targets, task.test_targets])[:, None]], axis=1)
    assert Counter(map(bytes, everyone.astype(np.uint8))) == Counter(
        map(bytes, np.column_stack([pixels, labels]).astype(np.uint8))
    )
    assert torch.bincount(task.test_targets).tolist() == [count // 5 for count in np.bincount(labels)]
    assert (task.test_name, task.default_model) == ("held-out fifth", "mlp")
    assert torch.equal(load_task("digits").train_inputs, task.train_inputs)


# --- tiny self-made files ---


def write_mnist(folder, num_train=6, num_test=3, pack=None):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    made = {}
    for part, count in (("train", num_train), ("t10k", num_test)):
        pixels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, count, dtype=np.uint8)
        made[part] = pixels, labels
        files = {
            f"{part}-images-idx3-ubyte": struct.pack(">4I", 0x803, count, 28, 28) + pixels.tobytes(),
            f"{part}-labels-idx1-ubyte": struct.pack(">2I", 0x801, count) + labels.tobytes(),
        }
        for name, data in files.items():
            if pack == "gz":
                (folder / f"{name}.gz").write_bytes(gzip.compress(data))
            else:
                (folder / name).write_bytes(data)
    return made


@pytest.mark.parametrize("pack", [None, "gz"])
@pytest.mark.parametrize("sub", ["mnist", ".", "MNIST/raw"])
def test_mnist_files(tmp_path, pack, sub):
    made = write_mnist(tmp_path / sub, pack=pack)
    task = load_task("mnist", tmp_path)
    assert task.train_targets.tolist() == made["train"][1].tolist()
    expected = (made["t10k"][0].astype(np.float64) / 255 - 0.1307) / 0.3081
    np.testing.assert_allclose(task.test_inputs[:, 0].numpy(), expected, atol=1e-6)


def write_cifar(folder, names, suffix=".bin.xz", num_records=2):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    made = {}
    for name in names:
        records = rng.integers(0, 256, (num_records, 3073), dtype=np.uint8)
        records[:, 0] %= 10
        made[name] = records
        data = records.tobytes()
        (folder / f"{name}{suffix}").write_bytes(lzma.compress(data) if suffix.endswith("xz") else data)
    return made


TRAIN_BATCHES = [f"data_batch_{number}" for number in range(1, 6)]


@pytest.mark.parametrize("suffix", [".bin", ".bin.xz"])
@pytest.mark.parametrize(
    "sub", ["cifar10", ".", "cifar-10-batches-bin", "cifar10/cifar-10-batches-bin", "cifar-10-batches-py"]
)
@pytest.mark.parametrize("with_test", [True, False])
def test_cifar_files(tmp_path, suffix, sub, with_test):
    made = write_cifar(tmp_path / sub, [*TRAIN_BATCHES, "test_batch"][: 6 if with_test else 5], suffix)
    task = load_task("cifar10", tmp_path)
    held_out = made["test_batch" if with_test else "data_batch_5"]
    assert task.test_name == ("test" if with_test else "held-out batch 5")
    assert task.test_targets.tolist() == held_out[:, 0].tolist()
    assert len(task.train_inputs) == (10 if with_test else 8)
    green = (held_out[1, 1 + 1024 : 1 + 2048].reshape(32, 32) / 255 - 0.4822) / 0.2435
    np.testing.assert_allclose(task.test_inputs[1, 1].numpy(), green, atol=1e-6)


PLAY = "Prologue, by nobody.\n\nANNE:\n{}\n\nBOB:\nYes:\nwell.\n\nand more of it.\n\nANNE:\n{}\n"


def test_speaker_texts():
    assert speaker_texts(PLAY.format("One.", "Two.")) == {
        "ANNE": "One.\nTwo.",
        "BOB": "Yes:\nwell.\nand more of it.",
    }
    assert speaker_texts("no names at all\n\nnone") == {}
    assert speaker_texts("") == {}


def test_shakespeare_windows_stay_with_their_speaker(tmp_path):
    anne, more = "abcdefghij" * 50, "klmno" * 60
    (tmp_path / "input.txt").write_bytes(PLAY.format(anne, more).replace("\n", "\r\n").encode())
    task = load_task("shakespeare", tmp_path)
    characters = sorted(set(PLAY.format(anne, more)))
    spoken = f"{anne}\n{more}"
    cut = len(spoken) - len(spoken) // 10
    windows = ["".join(characters[symbol] for symbol in row) for row in task.train_inputs.tolist()]
    assert windows == [spoken[at : at + 64] for at in range(0, cut - 64, 64)]
    assert task.groups.tolist() == [0] * len(windows)
    held_out = "".join(characters[symbol] for symbol in task.test_inputs[0].tolist())
    assert held_out == spoken[cut : cut + 64]


def test_shakespeare_without_speakers(tmp_path):
    (tmp_path / "shakespeare").mkdir()
    (tmp_path / "shakespeare" / "input.txt").write_text("abc def " * 200, encoding="utf-8")
    task = load_task("shakespeare", tmp_path)
    assert task.groups is None
    assert len(task.test_inputs) == (160 - 1) // 64


# --- the names files go by ---


@pytest.mark.parametrize("pack", [None, "gz"])
@pytest.mark.parametrize(
    "pattern",
    [
        "{part}-{kind}.{idx}-ubyte",  # as many tools unpack them, and on Kaggle
        "{part}-{kind}.{idx}-ubyte/{part}-{kind}.{idx}-ubyte",  # Kaggle's folders of the same names
        "{part}-{kind}-{idx}-ubyte/{part}-{kind}-{idx}-ubyte",
        "{part}_{kind}_{idx}_ubyte",
        "MNIST/raw/{part}-{kind}-{idx}-ubyte",  # torchvision
        "raw/{part}-{kind}-{idx}-ubyte",
        "Mnist/{part}-{kind}.{idx}-ubyte",
    ],
)
def test_mnist_by_its_other_names(tmp_path, pattern, pack):
    made = write_mnist(tmp_path / "plain", pack=pack)
    end = ".gz" if pack else ""
    for part in ("train", "t10k"):
        for kind, idx in (("images", "idx3"), ("labels", "idx1")):
            new = tmp_path / "data" / (pattern.format(part=part, kind=kind, idx=idx) + end)
            new.parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "plain" / f"{part}-{kind}-{idx}-ubyte{end}").rename(new)
    task = load_task("mnist", tmp_path / "data")
    assert task.train_targets.tolist() == made["train"][1].tolist()
    assert task.test_targets.tolist() == made["t10k"][1].tolist()


def test_fashion_is_not_mnist(tmp_path):
    write_mnist(tmp_path / "FashionMNIST" / "raw")
    with pytest.raises(ConfigError, match="mnist was not found"):
        load_task("mnist", tmp_path)


def test_of_a_plain_file_and_a_packed_one_the_plain_is_read(tmp_path):
    write_mnist(tmp_path, pack="gz")
    made = write_mnist(tmp_path, num_train=4)
    assert len(load_task("mnist", tmp_path).train_inputs) == 4
    assert made["train"][0].shape[0] == 4


@pytest.mark.parametrize(
    "sub", ["CIFAR10", "cifar-10", "cifar-10-binary/cifar-10-batches-bin", "cifar_10_batches_bin", "cifar10"]
)
def test_cifar_by_its_other_names(tmp_path, sub):
    made = write_cifar(tmp_path / sub, [*TRAIN_BATCHES, "test_batch"], ".bin")
    task = load_task("cifar10", tmp_path)
    assert task.test_targets.tolist() == made["test_batch"][:, 0].tolist()


def test_cifar_s_python_version_as_kaggle_has_it(tmp_path):
    folder = tmp_path / "cifar-10-python" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    records = np.zeros((2, 3073), np.uint8)
    for name in (*TRAIN_BATCHES, "test_batch"):
        write_pickle(folder / name, records)
    assert load_task("cifar10", tmp_path).test_name == "test"


@pytest.mark.parametrize(
    "file",
    [
        "input.txt",
        "shakespeare_char/input.txt",
        "tinyshakespeare/input.txt",
        "tiny-shakespeare.txt",
        "tinyshakespeare.txt",
        "Shakespeare/shakespeare.txt",
        "tiny_shakespeare.txt.gz",
    ],
)
def test_shakespeare_by_its_other_names(tmp_path, file):
    text = ("abc def " * 200).encode()
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(gzip.compress(text) if file.endswith("gz") else text)
    assert load_task("shakespeare", tmp_path).num_classes == 7


# --- rows ---


@pytest.mark.parametrize("name", TASKS)
def test_a_row_says_all_there_is_to_say(name):
    from gradwire.federated.data.models import MODEL_NAMES
    from gradwire.federated.experiment import Experiment

    row = TASKS[name]
    assert row.name == name
    assert row.default_model in MODEL_NAMES
    e = Experiment.build({"data": name, "rounds": 200})
    assert e.step_size == row.learning_rate > 0
    assert sum(e.evaluates(r) for r in range(200)) == (row.evaluations or 200)


# --- refusals ---


def test_environment_variable_names_the_folder(tmp_path, monkeypatch):
    write_mnist(tmp_path)
    monkeypatch.setenv("GRADWIRE_DATA", str(tmp_path))
    assert len(load_task("mnist").train_inputs) == 6
    with pytest.raises(ConfigError, match="not found"):
        load_task("mnist", tmp_path.parent / tmp_path.name / "..")


@pytest.mark.parametrize("name", [name for name, row in TASKS.items() if row.files])
def test_missing_folder_or_files(tmp_path, name):
    with pytest.raises(ConfigError, match=f"{name} needs a data folder, got none.*--data-dir.*GRADWIRE_DATA"):
        load_task(name)
    with pytest.raises(ConfigError, match=r"must be a folder, got .*nowhere"):
        load_task(name, tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=f"{name} was not found.*expected --data-dir") as caught:
        load_task(name, tmp_path)
    assert "\n" not in str(caught.value)


def test_unknown_name():
    with pytest.raises(ConfigError, match=r"got 'cifar'; did you mean 'cifar10'\?"):
        load_task("cifar")


def test_incomplete_sets_name_what_is_missing(tmp_path):
    write_cifar(tmp_path, TRAIN_BATCHES[:4])
    with pytest.raises(ConfigError, match=r"incomplete, got no data_batch_5\.bin, expected"):
        load_task("cifar10", tmp_path)


def write_pickle(path, records):
    """A batch as the Python version has it: protocol 2, pixels as an array, labels as a list."""
    batch = {
        "batch_label": "a batch",
        "labels": [int(label) for label in records[:, 0]],
        "data": records[:, 1:].copy(),
        "filenames": [f"{i}.png" for i in range(len(records))],
    }
    path.write_bytes(pickle.dumps(batch, protocol=2))


def test_pickled_batches_equal_binary_ones(tmp_path):
    rng = np.random.default_rng(0)
    names = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]
    pickled, binary = tmp_path / "a" / "cifar-10-batches-py", tmp_path / "b"
    pickled.mkdir(parents=True)
    binary.mkdir()
    for name in names:
        records = rng.integers(0, 256, (7, 3073), np.uint8)
        records[:, 0] = rng.integers(0, 10, 7)
        write_pickle(pickled / name, records)
        (binary / f"{name}.bin").write_bytes(records.tobytes())
    one, other = load_task("cifar10", tmp_path / "a"), load_task("cifar10", binary)
    assert (one.test_name, other.test_name) == ("test", "test")
    assert torch.equal(one.train_inputs, other.train_inputs)
    assert torch.equal(one.test_inputs, other.test_inputs)
    assert torch.equal(one.train_targets, other.train_targets)


@pytest.mark.parametrize("data", [b"", b"not even a pickle", pickle.dumps({"labels": [1, 2], "data": b"x" * 3072})])
def test_damaged_pickles(tmp_path, data):
    for name in ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigError, match=r"CIFAR-10"):
        load_task("cifar10", tmp_path)


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("file", "data", "match"),
    [
        (IMAGES, b"", "not idx, got a start of nothing, expected 00000803"),
        (IMAGES, struct.pack(">4I", 0x801, 6, 28, 28) + bytes(6 * 784), "not idx, got a start of 00000801"),
        (IMAGES, struct.pack(">4I", 0x803, 6, 28, 28) + bytes(6 * 784 - 1), "got 4719 bytes, expected 4720"),
        (IMAGES, struct.pack(">4I", 0x803, 6, 28, 28) + bytes(6 * 784 + 1), "got 4721 bytes, expected 4720"),
        (IMAGES, struct.pack(">4I", 0x803, 2**32 - 1, 2**32 - 1, 2**32 - 1), "got 16 bytes, expected 7922"),
        (IMAGES, struct.pack(">4I", 0x803, 0, 28, 28), "is empty"),
        (IMAGES, struct.pack(">4I", 0x803, 6, 14, 56) + bytes(6 * 784), "must hold images.*got 14 x 56"),
        (IMAGES, struct.pack(">4I", 0x803, 5, 28, 28) + bytes(5 * 784), "got 5, expected 6"),
        (LABELS, struct.pack(">2I", 0x801, 6) + bytes([0, 1, 2, 3, 4, 10]), "got label 10"),
    ],
)  # fmt: skip
def test_damaged_mnist(tmp_path, file, data, match):
    write_mnist(tmp_path)
    (tmp_path / file).write_bytes(data)
    with pytest.raises(ConfigError, match=match) as caught:
        load_task("mnist", tmp_path)
    assert file in str(caught.value)


def test_damaged_packing(tmp_path):
    write_mnist(tmp_path, pack="gz")
    path = tmp_path / f"{LABELS}.gz"
    whole = path.read_bytes()
    for damaged in (b"plain text", whole[:-6], whole[:12] + b"\xff\xff\xff" + whole[15:]):
        path.write_bytes(damaged)
        with pytest.raises(ConfigError, match=r"labels.*\.gz' is damaged or unreadable, got .*expected a gzip"):
            load_task("mnist", tmp_path)


@pytest.mark.parametrize("batch", ["data_batch_3", "test_batch"])
def test_damaged_cifar(tmp_path, batch):
    write_cifar(tmp_path, [*TRAIN_BATCHES, "test_batch"])
    path = tmp_path / f"{batch}.bin.xz"
    whole = path.read_bytes()
    for damaged in (b"not xz", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ConfigError, match=rf"{batch}.*is damaged or unreadable.*expected an xz file"):
            load_task("cifar10", tmp_path)
    for records, match in (
        (bytes(3072), "got 3072 bytes"),
        (b"", "got 0 bytes"),
        (b"\x0a" * 3073, "label 10"),
    ):
        path.write_bytes(lzma.compress(records))
        with pytest.raises(ConfigError, match=rf"{batch}.*{match}"):
            load_task("cifar10", tmp_path)


def test_damaged_shakespeare(tmp_path):
    path = tmp_path / "input.txt"
    path.write_bytes(b"ANNE:\n\xff\xfe")
    with pytest.raises(ConfigError, match=r"input\.txt' is damaged.*expected UTF-8"):
        load_task("shakespeare", tmp_path)
    path.write_bytes(b"ANNE:\nToo short.")
    with pytest.raises(ConfigError, match="too short, got 0 training and 0 held-out windows"):
        load_task("shakespeare", tmp_path)


def test_a_file_that_unpacks_without_end_is_refused(tmp_path, monkeypatch):
    from gradwire.federated.data import files

    monkeypatch.setattr(files, "_MAX_FILE_BYTES", 1000)
    write_mnist(tmp_path, pack="gz")
    with pytest.raises(ConfigError, match="more than 1000 bytes"):
        load_task("mnist", tmp_path)


@pytest.mark.parametrize("module", ["torch", "sklearn"])
def test_missing_extra_is_named(monkeypatch, module):
    if module == "sklearn":
        monkeypatch.setattr("gradwire.federated.data.digits.find_spec", lambda name: None)
    else:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'gradwire\[sim\]'"):
        load_task("digits")
