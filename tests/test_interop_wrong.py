"""Files that are no SAE, damaged or hostile: one line naming file and key, and nothing large allocated."""

from __future__ import annotations

import builtins
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from saebench.checks import InputError
from saebench.interop import read_sae
from saebench.interop.hub import is_id, parts_of
from saebench.saes import build
from saebench.saes.files import save_sae
from saebench.store import read_json
from tests.configs import sae_config, stats_of, synthetic
from tests.test_interop import FIXTURES

Break = Callable[[Path], None]


def tensors(name: str, **changes: torch.Tensor | None) -> Break:
    """Change, add or (None) leave out tensors of a safetensors file; the keys have __ for the dot."""

    def apply(folder: Path) -> None:
        found = load_file(folder / name)
        for key, value in changes.items():
            found.pop(key.replace("__", "."), None)
            if value is not None:
                found[key.replace("__", ".")] = value
        save_file(found, folder / name)

    return apply


def config(name: str, **changes: Any) -> Break:
    """Change keys of a JSON file."""

    def apply(folder: Path) -> None:
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | changes))

    return apply


def text(name: str, content: str) -> Break:
    """Write another file in its place."""

    def apply(folder: Path) -> None:
        (folder / name).write_text(content)

    return apply


def state(**changes: Any) -> Break:
    """Change values of ae.pt."""

    def apply(folder: Path) -> None:
        path = next(iter(folder.glob("*.pt")))
        torch.save(torch.load(path, weights_only=True) | changes, path)

    return apply


class Evil:
    """What a pickle could do."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("import builtins; builtins.saebench_ran_this = True",))


def pickled(folder: Path) -> None:
    next(iter(folder.glob("*.pt"))).write_bytes(pickle.dumps(Evil()))


def pickled_inside(folder: Path) -> None:
    torch.save({"encoder.weight": Evil()}, next(iter(folder.glob("*.pt"))))


def expanded(folder: Path) -> None:
    """A tensor whose shape is far larger than its data."""
    state(**{"encoder.weight": torch.zeros(1).expand(1 << 40, 6)})(folder)


def huge_header(folder: Path) -> None:
    """A safetensors header that promises 4 TB."""
    header = json.dumps({"W_enc": {"dtype": "F32", "shape": [1 << 20, 1 << 20], "data_offsets": [0, 1 << 42]}}).encode()
    (folder / "sae_weights.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 64)


def npz(content: bytes, name: str = "W_enc.npy", method: int = zipfile.ZIP_STORED) -> Break:
    def apply(folder: Path) -> None:
        with zipfile.ZipFile(folder / "params.npz", "w", method) as archive:
            archive.writestr(name, content)

    return apply


def npy(shape: tuple[int, ...], data: bytes) -> bytes:
    """An .npy with this shape in its header, whatever follows."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def objects(folder: Path) -> None:
    np.savez(folder / "params.npz", W_enc=np.array([Evil()], dtype=object), allow_pickle=True)


NAN = torch.full((16,), torch.nan)
SL, SP, DL, GS, G2, OA = (
    "saelens-jumprelu",
    "sparsify-topk",
    "dictionary_learning-BatchTopKSAE",
    "gemma_scope",
    "gemma_scope_2",
    "openai-topk",
)
WEIGHTS = "sae_weights.safetensors"
WRONG: dict[str, tuple[str, Break, str]] = {
    "missing": (SL, tensors(WEIGHTS, threshold=None), f"{WEIGHTS}: threshold: missing; the file has W_dec, W_enc, b_dec"),
    "shape": (SL, tensors(WEIGHTS, b_enc=torch.zeros(7)), f"{WEIGHTS}: b_enc: has shape (7,), and (16,) is needed"),
    "matrix": (SL, tensors(WEIGHTS, W_enc=torch.zeros(7)), f"{WEIGHTS}: W_enc: shape (7,) is not that of a matrix"),
    "nan": (SL, tensors(WEIGHTS, b_enc=NAN), f"{WEIGHTS}: b_enc: holds NaN or inf"),
    "bool": (SL, tensors(WEIGHTS, b_enc=NAN > 0), f"{WEIGHTS}: b_enc: has dtype torch.bool"),
    "extra": (SL, tensors(WEIGHTS, W_skip=torch.zeros(6, 6)), f"{WEIGHTS}: W_skip: saebench does not know"),
    "huge": (SL, huge_header, f"{WEIGHTS}: not a valid safetensors file"),
    "garbage": (SL, text(WEIGHTS, "no"), f"{WEIGHTS}: not a valid safetensors file"),
    "architecture": (SL, config("cfg.json", architecture="temporal"), "cfg.json: architecture=temporal: not an SAE"),
    "json": (SL, text("cfg.json", "{"), "cfg.json: not valid JSON"),
    "list": (SL, text("cfg.json", "[]"), "cfg.json: not a JSON object"),
    "scale": (SL, config("cfg.json", normalize_activations="expected_average_only_in"), "activation_scaler.json"),
    "norm": (SL, config("cfg.json", normalize_activations="constant_norm_rescale"), "normalize_activations=constant_norm"),
    "heads": (SL, config("cfg.json", reshape_activations="hook_z"), "cfg.json: reshape_activations=hook_z"),
    "k": ("saelens-topk", config("cfg.json", k=2.5), "cfg.json: k=2.5: must be a whole number"),
    "many k": ("saelens-topk", config("cfg.json", k=17), "cfg.json: k=17: cannot exceed the 16 latents"),
    "groupmax": (SP, config("cfg.json", activation="groupmax"), "cfg.json: activation=groupmax: saebench reads topk"),
    "transcoder": (SP, config("cfg.json", transcode=True), "cfg.json: transcode=True: not an SAE"),
    "latents": (SP, config("cfg.json", num_latents=32), "cfg.json: num_latents=32: sae.safetensors has 16"),
    "no k": (SP, config("cfg.json", k=None), "cfg.json: k=None: must be a whole number"),
    "pickle": (DL, pickled, "ae.pt: not the archive that torch.save writes, perhaps a pickle"),
    "code": (DL, pickled_inside, "ae.pt: holds more than tensors and plain values, and no pickle is read"),
    "expanded": (DL, expanded, "ae.pt: encoder.weight: shape (1099511627776, 6) is larger than its data"),
    "class": (DL, config("config.json", trainer={"dict_class": "CrossCoder"}), "trainer.dict_class=CrossCoder"),
    "trainer": (DL, config("config.json", trainer=None), "config.json: trainer: missing"),
    "unset": (DL, state(threshold=torch.tensor(-1.0)), "ae.pt: threshold=-1: never set in training"),
    "archive": (GS, text("params.npz", "no"), "params.npz: not an npz archive"),
    "promise": (GS, npz(npy((1 << 20, 1 << 20), b"0000")), "params.npz: W_enc: its header says 4,398,046,511,104 bytes, and 4"),
    "bomb": (GS, npz(bytes(1 << 28), method=zipfile.ZIP_DEFLATED), "params.npz: would unpack to 268,435,456 bytes"),
    "objects": (GS, objects, "params.npz: W_enc: holds object, not numbers"),
    "no array": (GS, npz(b"hello, this is no array"), "params.npz: not a valid npz file"),
    "affine": (G2, config("config.json", affine_connection=True), "config.json: affine_connection: not an SAE"),
    "crosscoder": (G2, config("config.json", type="crosscoder"), "config.json: type=crosscoder: saebench reads sae"),
    "activation": (OA, state(activation="Identity"), "8.pt: activation=Identity: saebench reads ReLU and TopK"),
    "no state": (OA, state(activation_state_dict=None), "8.pt: activation_state_dict: missing"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_line_naming_file_and_key(case: str, tmp_path: Path) -> None:
    fixture, spoil, message = WRONG[case]
    folder = tmp_path / fixture
    shutil.copytree(FIXTURES / fixture, folder)
    (folder / "expected.safetensors").unlink()
    spoil(folder)
    with pytest.raises(InputError) as error:
        read_sae(folder / "8.pt" if fixture == OA else folder)
    assert message in str(error.value)
    assert str(folder) in str(error.value)
    assert not hasattr(builtins, "saebench_ran_this")


@pytest.mark.parametrize("fixture", [SL, SP, DL, GS, G2, OA])
def test_the_cases_are_wrong_by_what_was_changed_alone(fixture: str) -> None:
    read_sae(FIXTURES / fixture / "8.pt" if fixture == OA else FIXTURES / fixture)


def own(folder: Path) -> Path:
    folder.mkdir()
    save_sae(build(sae_config("topk"), stats_of(synthetic(64)), 0), folder)
    return folder


OURS: dict[str, tuple[Break, str]] = {
    "variant": (config("sae.json", config={"name": "best"}), "sae.json: unknown variant best"),
    "keys": (config("sae.json", config={"name": "topk"}), "sae.json: written by another version"),
    "no config": (text("sae.json", "{}"), "sae.json: without the SAE's config"),
    "d_in": (config("sae.json", d_in=1 << 40), "sae.json: W_enc would be [1099511627776, 96], and sae.safetensors"),
    "tensor": (tensors("sae.safetensors", b_enc=None), "sae.json: b_enc would be [96], and sae.safetensors holds none"),
    "garbage": (text("sae.safetensors", "no"), "sae.safetensors: cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("case", OURS)
def test_our_own_files_are_not_trusted_either(case: str, tmp_path: Path) -> None:
    folder = own(tmp_path / "run")
    OURS[case][0](folder)
    with pytest.raises(InputError) as error:
        read_sae(folder)
    assert OURS[case][1] in str(error.value)


def test_a_dictionary_of_another_size_than_its_file_is_never_made(tmp_path: Path) -> None:
    folder = own(tmp_path / "run")
    described = read_json(folder / "sae.json")
    described["config"]["d_sae"] = 1 << 40
    (folder / "sae.json").write_text(json.dumps(described))
    with pytest.raises(InputError, match=r"sae.json: W_enc would be \[24, 1099511627776\]"):
        read_sae(folder)


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    for source in ("/nowhere/at/all", "./nothing", "word"):
        with pytest.raises(InputError, match=f"{source}: there is no such folder, and it is no hub id"):
            read_sae(source)
    with pytest.raises(InputError, match="no SAE of a known format there; saebench reads saebench"):
        read_sae(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"notes.txt: no SAE of a known format"):
        read_sae(tmp_path / "notes.txt")
    with pytest.raises(InputError, match="holds several SAEs; name one of dictionary_learning-AutoEncoder, "):
        read_sae(FIXTURES)
    with pytest.raises(InputError, match="--from=safelens: did you mean saelens"):
        read_sae(FIXTURES / SL, "safelens")
    with pytest.raises(InputError, match=r"cfg\.json: missing"):
        read_sae(FIXTURES / GS, "sparsify")


def test_without_a_network_the_hub_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError) as error:
        read_sae("nobody/nothing-of-this-name")
    assert str(error.value).startswith("nobody/nothing-of-this-name: the hub cannot be used for it (")
    assert "\n" not in str(error.value)


def test_hub_ids_have_folders_and_revisions() -> None:
    assert parts_of("owner/name") == ("owner/name", "", None)
    assert parts_of("owner/name/layer_12/width_16k@v1.0") == ("owner/name", "layer_12/width_16k", "v1.0")
    assert parts_of("owner/name@abc") == ("owner/name", "", "abc")
    for wrong in ("owner", "/owner/name", "../name", "owner/../name", "a b/c", "owner/name@", "owner//name"):
        assert not is_id(wrong), wrong
