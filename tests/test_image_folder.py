"""Reading images of one's own from a folder and a list."""

import io
import json
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from biases.ablation import load_image_folder, load_images

ROWS = [
    ("a/0.png", "a", "train"),
    ("b/0.png", "b", "train"),
    ("b/1.png", "b", "val"),
    ("a/1.png", "a", "test"),
    ("b/2.png", "b", "test"),
]


def csv_of(rows, header="path,label,split"):
    return "\n".join([header, *(",".join(row) for row in rows)]) + "\n"


@pytest.fixture
def tree(tmp_path):
    """A class a that is red, a class b that is blue, each image with a black frame beyond its central square."""
    root = tmp_path / "tree"
    for name, label, _ in ROWS:
        pixels = np.zeros((20, 40, 3), dtype=np.uint8)
        pixels[:, 10:30, 0 if label == "a" else 2] = 200
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    (root / "split.csv").write_text(csv_of(ROWS))
    return root


def test_a_folder_is_read(tree):
    told = []
    images = load_image_folder(tree, size=8, progress=lambda done, total: told.append((done, total)))
    assert images.classes == ("a", "b")
    assert images.train.shape == (2, 3, 8, 8)
    assert images.train_labels.tolist() == [0, 1]
    assert images.test_labels.tolist() == [0, 1]
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    red = images.train[0].float()
    # The interior of the central square is flat; its outermost columns take in some of the frame.
    assert red[0, :, 2:-2].unique().tolist() == [200]
    assert red[1:].max() == 0
    assert images.test.float()[1, 2, :, 2:-2].unique().tolist() == [200]
    assert load_image_folder(tree, size=8, test_split="val").test_labels.tolist() == [1]
    assert load_images(tree).train.shape == (2, 3, 224, 224)


def test_json_and_csv_lists_say_the_same(tree):
    first = load_image_folder(tree, size=8)
    (tree / "split.csv").unlink()
    columns = ("path", "label", "split")
    (tree / "split.json").write_text(json.dumps([dict(zip(columns, row, strict=True)) for row in ROWS]))
    second = load_image_folder(tree, size=8)
    assert first.sha256 == second.sha256
    assert torch.equal(first.train, second.train)


def test_the_hash_tells_files_labels_and_size_apart(tree):
    hashes = {load_image_folder(tree, size=8).sha256, load_image_folder(tree, size=9).sha256}
    swapped = [("a/1.png", "b", "test"), ("b/2.png", "a", "test")]
    (tree / "split.csv").write_text(csv_of([*ROWS[:3], *swapped]))
    hashes.add(load_image_folder(tree, size=8).sha256)
    (tree / "split.csv").write_text(csv_of(ROWS))
    Image.new("RGB", (9, 9)).save(tree / "a/0.png")
    hashes.add(load_image_folder(tree, size=8).sha256)
    assert len(hashes) == 4


@pytest.mark.parametrize(
    ("mode", "size"), [("L", (20, 20)), ("RGBA", (5, 30)), ("P", (31, 7)), ("1", (3, 3)), ("I;16", (8, 8))]
)
def test_modes_and_shapes_become_rgb_squares(tree, mode, size):
    Image.new(mode, size).save(tree / "a/0.png")
    assert load_image_folder(tree, size=16).train.shape == (2, 3, 16, 16)


@pytest.mark.parametrize(("mode", "suffix"), [("I;16", "PNG"), ("I;16", "TIFF"), ("I;16B", "TIFF")])
def test_sixteen_bits_keep_their_gradient(tree, mode, suffix):
    values = np.linspace(0, 65535, 256).reshape(16, 16).round().astype(np.uint16)
    content = io.BytesIO()
    stored = values.astype(">u2" if mode == "I;16B" else "<u2").tobytes()
    Image.frombytes(mode, (16, 16), stored).save(content, format=suffix)
    assert Image.open(content).mode == mode
    (tree / "a/0.png").write_bytes(content.getvalue())
    image = load_image_folder(tree, size=16).train[0]
    for channel in image:
        assert channel.flatten().tolist() == list(range(256))


@pytest.mark.parametrize(("mode", "got"), [("I", "mode I,"), ("F", "mode F,"), ("I;12", "12,")])
def test_pixels_of_unknown_range_are_refused(tree, mode, got):
    content = io.BytesIO()
    if mode == "I;12":
        # Pillow reads such files and does not write them: two pixels of 12 bits in three bytes.
        tags = [(256, 8), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8 + 2 + 9 * 12 + 4), (277, 1), (278, 1)]
        tags.append((279, 12))
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
        content.write(struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + bytes(12))
    else:
        Image.new(mode, (8, 8)).save(content, format="TIFF")
    (tree / "b/0.png").write_bytes(content.getvalue())
    with pytest.raises(ValueError, match=rf"line 3: expected .* in .*b/0\.png, got pixels of .*{got}.* range is not"):
        load_image_folder(tree, size=8)


@pytest.mark.parametrize("shape", [(20_000, 1), (1, 20_000)])
def test_a_thin_image_is_never_enlarged_as_a_whole(tree, monkeypatch, shape):
    width, height = shape
    middle = np.zeros((height, width, 3), dtype=np.uint8)
    middle[max(height // 2 - 4, 0) : height // 2 + 4, max(width // 2 - 4, 0) : width // 2 + 4] = 90
    Image.fromarray(middle).save(tree / "a/0.png")
    sides = []
    whole = Image.Image.resize

    def resize(self, *arguments, **options):
        result = whole(self, *arguments, **options)
        sides.extend(result.size)
        return result

    monkeypatch.setattr(Image.Image, "resize", resize)
    assert (load_image_folder(tree, size=8).train[0] == 90).all()
    assert max(sides) == 8


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a/9.png,a,train", r"split\.csv, line 7, path: expected a file below .*, got 'a/9\.png', which is missing"),
        ("a,a,train", r"line 7, path: .*'a', which is no file"),
        ("../outside.png,a,train", r"line 7, path: expected a file below .*, got '\.\./outside\.png', which is"),
        ("a/0.png,a,train", r"line 7: expected each image once, got 'a/0\.png' again, after .*line 2"),
        ("b/../a/0.png,a,test", r"line 7: expected each image once, got 'b/\.\./a/0\.png' again, after .*line 2"),
        ("a/2.png,a,trian", r"line 7, split: expected one of 'train', 'val', 'test', got 'trian' \(did you mean"),
        ("a/2.png,,train", r"line 7, label: expected the name of a class, got ''"),
        ("a/2.png,a", r"line 7: expected 3 fields, got 2"),
        ("a/2.png,c,test", r"line 7: expected a class with training images: one of 2, got 'c'"),
        ('"a/2.png,a,train', r"line 7: expected CSV, got unexpected end of data"),
        ("a/\0.png,a,train", r"line 7, path: expected a file below .*, got 'a/\\x00\.png'"),
    ],
)
def test_a_wrong_line_is_named(tree, line, message):
    Image.new("RGB", (9, 9)).save(tree / "a/2.png")
    Image.new("RGB", (9, 9)).save(tree.parent / "outside.png")
    (tree / "split.csv").write_text(csv_of(ROWS) + line + "\n")
    with pytest.raises(ValueError, match=message):
        load_image_folder(tree, size=8)


def test_absolute_paths_and_links_out_of_the_tree_are_refused(tree):
    outside = tree.parent / "outside.png"
    Image.new("RGB", (9, 9)).save(outside)
    (tree / "a/link.png").symlink_to(outside)
    for name in (str(outside), "a/link.png"):
        (tree / "split.csv").write_text(csv_of([*ROWS, (name, "a", "train")]))
        with pytest.raises(ValueError, match=f"expected a file below {tree}, got '{name}', which is {outside}"):
            load_image_folder(tree, size=8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "expected JSON, got"),
        ("{}", "expected an array of objects with path, label, split, got a dict"),
        ('[{"path": "a/0.png", "label": "a"}]', "entry 1: expected an object with path, label, split, got"),
        ('[{"path": "a/0.png", "label": 3, "split": "train"}]', "entry 1, label: expected a string, got 3"),
        ("[" * 100_000, "expected JSON, got"),
    ],
)
def test_a_wrong_json_list_is_named(tree, content, message):
    (tree / "split.json").write_text(content)
    with pytest.raises(ValueError, match=r"split\.json.*" + message):
        load_image_folder(tree, split_file=tree / "split.json", size=8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1: expected the header path,label,split, got ''"),
        (b"path,label\na/0.png,a\n", "line 1: expected the header path,label,split, got 'path,label'"),
        (b"path,label,split\n", "expected images of split 'train', got none"),
        (b"path,label,split\na/0.png,a,train\n", "expected images of split 'test', got none"),
        (b"path,label,split\n\xff,a,train\n", "expected UTF-8, got invalid start byte at byte 17"),
    ],
)
def test_a_wrong_csv_list_is_named(tree, content, message):
    (tree / "split.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_image_folder(tree, size=8)


def test_a_list_that_is_not_there_or_no_list_is_named(tree):
    for name, message in (("none.csv", "expected a file, got"), ("list.txt", r"expected a file \*.csv or \*.json")):
        with pytest.raises(ValueError, match=message):
            load_image_folder(tree, split_file=tree / name, size=8)
    (tree / "split.csv").unlink()
    with pytest.raises(ValueError, match=r"split\.csv or split\.json, got neither"):
        load_image_folder(tree, size=8)
    with pytest.raises(ValueError, match="images root: expected a directory"):
        load_image_folder(tree / "split.csv", size=8)
    with pytest.raises(ValueError, match="size: expected an integer of at least 1, got 0"):
        load_image_folder(tree, size=0)


@pytest.mark.parametrize("suffix", ["PNG", "JPEG"])
def test_a_damaged_image_is_named_with_its_line(tree, suffix):
    content = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content, format=suffix)
    raw = content.getvalue()
    for cut in (0, 1, 20, len(raw) // 4, len(raw) // 2, 3 * len(raw) // 4):
        (tree / "b/0.png").write_bytes(raw[:cut])
        with pytest.raises(ValueError, match=r"split\.csv, line 3: expected a whole image .*b/0\.png, got \S"):
            load_image_folder(tree, size=8)


def test_an_image_that_would_fill_the_memory_is_refused(tree, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"line 2: expected a whole image .* exceeds limit"):
        load_image_folder(tree, size=8)
