"""Which files of a folder are for others: links, indexes, patterns."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import save_file

from pangu_trl.hub import ModelFolder, prepare


@pytest.fixture
def folder(tmp_path):
    """A model in two shards; only names matter here."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}))
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for name, key in zip(names, "ab", strict=True):
        save_file({key: torch.zeros(3)}, path / name)
    write_index(path, dict(zip("ab", names, strict=True)))
    return path


def write_index(folder, weight_map, name="model.safetensors.index.json"):
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize(
    "name", ["LICENSE", "README.md", "config.json", "chat_template.jinja", "vocab.txt", "notes/a.log"]
)
def test_a_link_out_of_the_folder_is_refused_by_name(folder, tmp_path, name):
    secret = tmp_path / "id_rsa"
    secret.write_text('{"model_type": "gpt2"}')
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(secret)
    with pytest.raises(ValueError, match=f"{name}: is a link out of the folder, to .*id_rsa"):
        prepare(folder, "tester/x", include=["notes/*"] if "/" in name else [])


def test_links_of_weights_code_and_index_are_refused_too(folder, tmp_path):
    for name in ("model-00002-of-00002.safetensors", "model.safetensors.index.json"):
        shutil.move(folder / name, tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)
        with pytest.raises(ValueError, match=f"{name}: is a link out of the folder"):
            prepare(folder, "tester/x")
        (folder / name).unlink()
        shutil.move(tmp_path / name, folder / name)
    config = {"model_type": "gpt2", "auto_map": {"AutoConfig": "mine.C"}}
    (folder / "config.json").write_text(json.dumps(config))
    (tmp_path / "mine.py").write_text("x = 1\n")
    (folder / "mine.py").symlink_to(tmp_path / "mine.py")
    with pytest.raises(ValueError, match="mine.py: is a link out of the folder"):
        prepare(folder, "tester/x")
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoConfig": "../mine.C"}}))
    with pytest.raises(ValueError, match=r"config.json: 'auto_map' names custom code in '../mine'"):
        prepare(folder, "tester/x")


def test_a_link_to_a_file_of_the_folder_is_that_file_even_if_the_folder_is_a_link(folder, tmp_path):
    (folder / "text").write_text("The license.")
    (folder / "LICENSE").symlink_to("text")
    (tmp_path / "link").symlink_to(folder)
    for path in (folder, tmp_path / "link"):
        publication = prepare(path, "tester/x")
        assert publication.files["LICENSE"].read_text() == "The license."
        assert publication.left_out == ["text"]


def test_links_that_lead_nowhere_or_to_folders_and_pipes_are_refused(folder, tmp_path):
    (folder / "LICENSE").symlink_to("gone")
    with pytest.raises(ValueError, match="LICENSE: is a link to gone, which does not exist"):
        prepare(folder, "tester/x")
    (folder / "LICENSE").unlink()
    os.mkfifo(folder / "LICENSE")
    with pytest.raises(ValueError, match="LICENSE: expected a file, got something else"):
        prepare(folder, "tester/x")
    (folder / "LICENSE").unlink()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"x")
    (folder / "images").symlink_to(tmp_path / "images")
    assert prepare(folder, "tester/x").left_out == ["images/"]
    with pytest.raises(ValueError, match="images: is a link to a folder, which is not followed"):
        prepare(folder, "tester/x", include=["images/*"])


@pytest.mark.parametrize(
    ("weight_map", "error", "found"),
    [
        (
            {"a": "../other/model.safetensors"},
            ValueError,
            "names '../other/model.safetensors', which is not in its folder",
        ),
        ({"a": "/data/model.safetensors"}, ValueError, "names '/data/model.safetensors', which is not in its folder"),
        ({"a": "sub/model.safetensors"}, ValueError, "which is not in its folder"),
        ({"a": "sub\\model.safetensors"}, ValueError, "which is not in its folder"),
        ({"a": ".."}, ValueError, "which is not in its folder"),
        ({"a": "model-00003-of-00003.safetensors"}, FileNotFoundError, "names model-00003-of-00003.safetensors"),
        ({"a": 1}, ValueError, "expected 'weight_map'"),
        ({}, ValueError, "expected 'weight_map'"),
        ({"b": "model-00001-of-00002.safetensors"}, ValueError, "holds the tensor b, which it does not"),
    ],
)
def test_an_index_that_names_what_is_not_there_is_refused(folder, weight_map, error, found):
    write_index(folder, weight_map)
    with pytest.raises(error) as refusal:
        prepare(folder, "tester/x")
    assert "model.safetensors.index.json: " in str(refusal.value) and found in str(refusal.value)


def test_an_index_that_is_included_brings_its_shards_or_is_refused(folder):
    write_index(folder, {"a": "pytorch_model-00001-of-00001.bin"}, "pytorch_model.bin.index.json")
    with pytest.raises(FileNotFoundError, match="pytorch_model.bin.index.json: names pytorch_model-00001-of-00001.bin"):
        prepare(folder, "tester/x", include=["pytorch_model.bin.index.json"])
    (folder / "pytorch_model-00001-of-00001.bin").write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match="which would not be published"):
        prepare(folder, "tester/x", include=["pytorch_model.bin.index.json"])
    assert "pytorch_model-00001-of-00001.bin" in prepare(folder, "tester/x", include=["pytorch_model*"]).files
    write_index(folder, {"a": "../pytorch_model.bin"}, "pytorch_model.bin.index.json")
    with pytest.raises(ValueError, match="which is not in its folder"):
        prepare(folder, "tester/x", include=["pytorch_model*"])


def test_weights_that_the_index_does_not_name_stay_behind(folder):
    save_file({"a": torch.zeros(3)}, folder / "model-00001-of-00003.safetensors")
    save_file({"a": torch.zeros(3)}, folder / "model.fp16.safetensors")
    assert prepare(folder, "tester/x").left_out == ["model-00001-of-00003.safetensors", "model.fp16.safetensors"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.txt", ["a.txt"]),
        ("x/*.txt", ["x/b.txt"]),
        ("**/*.txt", ["a.txt", "x/b.txt", "x/y/c.txt"]),
        ("x/", ["x/b.txt", "x/y/c.txt"]),
        ("x/**", ["x/b.txt", "x/y/c.txt"]),
        ("./x/y/?.txt", ["x/y/c.txt"]),
    ],
)
def test_a_star_stops_at_a_folder(folder, pattern, names):
    (folder / "x" / "y").mkdir(parents=True)
    for name in ("a.txt", "x/b.txt", "x/y/c.txt"):
        (folder / name).write_text("x")
    chosen, _ = ModelFolder.open(folder).files([pattern])
    assert [name for name in chosen if name.endswith(".txt")] == names
    for outside in ("../*", "/etc/passwd", "x", "*.TXT"):
        with pytest.raises(FileNotFoundError, match="holds no file that matches"):
            ModelFolder.open(folder).files([outside])
