from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from edgekd.errors import UserError
from edgekd.nn.mode import evaluating
from edgekd.nn.program import frozen_module, load_program
from edgekd.testing.toys import toy_cnn
from tests.nn.test_sniff import Bomb
from tests.nn.zoo import exported, images, saved


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(exported(toy_cnn(), images(2)), tmp_path_factory.mktemp("program") / "model.pt2")


def tampered(source: Path, target: Path, end: str, change: Callable[[bytes], bytes]) -> Path:
    """A copy of an archive in which the member whose name ends with `end` is changed."""
    with zipfile.ZipFile(source) as before, zipfile.ZipFile(target, "w") as after:
        names = before.namelist()
        assert sum(name.endswith(end) for name in names) == 1
        for name in names:
            content = before.read(name)
            after.writestr(name, change(content) if name.endswith(end) else content)
    return target


def with_member(source: Path, target: Path, name: str, content: bytes) -> Path:
    shutil.copy(source, target)
    with zipfile.ZipFile(target, "a") as archive:
        root = archive.namelist()[0].split("/")[0]
        archive.writestr(f"{root}/{name}", content)
    return target


def edited(change: Callable[[dict[str, Any]], None]) -> Callable[[bytes], bytes]:
    def rewrite(content: bytes) -> bytes:
        data = json.loads(content)
        change(data)
        return json.dumps(data).encode()

    return rewrite


def replaced(old: str, new: str) -> Callable[[bytes], bytes]:
    def rewrite(content: bytes) -> bytes:
        assert old in content.decode()
        return content.decode().replace(old, new).encode()

    return rewrite


def pickled(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def test_an_honest_program_loads_and_computes_what_the_module_computes(honest: Path) -> None:
    assert torch.equal(frozen_module(load_program(honest))(images()), toy_cnn()(images()))


def test_a_frozen_module_owns_its_weights_and_has_one_mode(honest: Path) -> None:
    program = load_program(honest)
    frozen = frozen_module(program)
    with torch.no_grad():
        next(frozen.parameters()).zero_()
    assert not frozen.train().training
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert any(value.abs().sum() > 0 for value in list(program.state_dict.values())[:1])
    with evaluating(frozen):
        assert frozen(images()).shape == (3, 4)


def test_a_pickle_among_the_sample_inputs_is_refused_and_not_run(honest: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    path = tampered(honest, tmp_path / "bad.pt2", "sample_inputs/model.pt", lambda _: pickled(Bomb(mark)))
    with pytest.raises(UserError, match=r"a pickle of builtins.getattr, .* in .*sample_inputs/model\.pt"):
        load_program(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "name", ["data/constants/opaque_obj_0", "data/constants/custom_obj_0", "data/aotinductor/m/x.so"]
)
def test_members_that_torch_would_unpickle_or_run_are_refused(name: str, honest: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds the member"):
        load_program(with_member(honest, tmp_path / "bad.pt2", name, b"x"))


def test_a_weight_that_says_it_is_a_pickle_is_refused(honest: Path, tmp_path: Path) -> None:
    change = replaced('"use_pickle": false', '"use_pickle": true')
    path = tampered(honest, tmp_path / "bad.pt2", "model_weights_config.json", change)
    with pytest.raises(UserError, match=r"the pickled constant 'stem\.0\.weight'"):
        load_program(path)


@pytest.mark.parametrize(
    "expression", ["__import__('os').system('true')", "open('x', 'w')", "Symbol('s0').__class__", "().x", "exec"]
)
def test_a_size_that_is_code_is_refused(expression: str, honest: Path, tmp_path: Path) -> None:
    def change(value: object) -> None:
        if isinstance(value, dict):
            if "expr_str" in value:
                value["expr_str"] = expression
            for inner in value.values():
                change(inner)
        elif isinstance(value, list):
            for inner in value:
                change(inner)

    path = tampered(honest, tmp_path / "bad.pt2", "models/model.json", edited(change))
    with pytest.raises(UserError, match=r"the text .* in its graph"):
        load_program(path)


def test_a_name_that_is_code_is_refused(honest: Path, tmp_path: Path) -> None:
    change = replaced('["images"]', '["x=open(1)"]')
    with pytest.raises(UserError, match=r"the text 'x=open\(1\)' in its graph"):
        load_program(tampered(honest, tmp_path / "bad.pt2", "models/model.json", change))


def test_guards_are_never_evaluated(honest: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    code = f"open({str(mark)!r}, 'w') is None"
    path = tampered(
        honest, tmp_path / "guarded.pt2", "models/model.json", edited(lambda data: data.update(guards_code=[code]))
    )
    frozen_module(load_program(path))(images())
    assert not mark.exists()


def test_two_members_of_one_name_are_refused(honest: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two members of one name"):
        load_program(with_member(honest, tmp_path / "bad.pt2", "models/MODEL.json", b"{}"))


def test_a_program_that_torch_cannot_read_is_refused_with_its_version(honest: Path, tmp_path: Path) -> None:
    path = tampered(honest, tmp_path / "bad.pt2", "archive_version", lambda _: b"99")
    with pytest.raises(UserError, match=rf"torch {torch.__version__.split('+')[0]}"):
        load_program(path)
