import pytest
import torch
from safetensors.torch import save_file

from coachhook.editors.base import Update
from coachhook.journal import JournalError, read_step, step_path, write_step, write_text


def update():
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(4, 6, generator=generator)
    return Update({"left.1": wide.T, "right.1": wide[:, :3]}, {"alpha": {"1": 1.7888543819998317}})


def test_a_step_comes_back_bit_for_bit(tmp_path):
    write_step(tmp_path, 12, update())
    read = read_step(tmp_path, 12)
    assert read.info == update().info
    assert set(read.tensors) == {"left.1", "right.1"}
    for name, tensor in update().tensors.items():
        assert torch.equal(read.tensors[name], tensor)
    assert [path.name for path in tmp_path.iterdir()] == ["000012.safetensors"]


def test_the_same_step_is_the_same_bytes(tmp_path):
    for step in range(5):
        (tmp_path / str(step)).mkdir()
        write_step(tmp_path / str(step), 7, update())
    assert len({step_path(tmp_path / str(step), 7).read_bytes() for step in range(5)}) == 1


def test_a_step_that_was_never_stored_is_none(tmp_path):
    write_step(tmp_path, 1, update())
    assert read_step(tmp_path, 2) is None
    assert read_step(tmp_path / "nowhere", 1) is None


@pytest.mark.parametrize("share", [0.0, 0.05, 0.9])
def test_a_damaged_step_is_named(tmp_path, share):
    write_step(tmp_path, 3, update())
    path = step_path(tmp_path, 3)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(JournalError, match=r"000003\.safetensors: damaged .*delete it") as caught:
        read_step(tmp_path, 3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("metadata", [{"format": "99"}, None])
def test_a_step_of_another_format_is_refused(tmp_path, metadata):
    save_file({"x": torch.zeros(1)}, step_path(tmp_path, 1), metadata)
    with pytest.raises(JournalError, match="format"):
        read_step(tmp_path, 1)


@pytest.mark.parametrize(
    "write", [lambda path: write_step(path, 1, update()), lambda path: write_text(path / "t", "new")]
)
def test_an_interrupted_write_leaves_what_was_there(tmp_path, monkeypatch, write):
    write_step(tmp_path, 1, Update({"x": torch.zeros(1)}))
    write_text(tmp_path / "t", "old")

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path)
    assert (tmp_path / "t").read_text() == "old"
    assert list(read_step(tmp_path, 1).tensors) == ["x"]
