import os
import pickle
import zipfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from urllib.error import HTTPError, URLError

import pytest
import torch
from safetensors.torch import save_file

from tiprctl.errors import InputError, UsageError
from tiprctl.models.clip import SIZES, Clip, ClipConfig
from tiprctl.models.weights import (
    build_clip,
    find_pretrained,
    load_pretrained,
    read_weights,
    resize_positions,
    sizes_of,
)

SQUARE = ClipConfig(
    embed_dim=32,
    image_size=(32, 32),
    patch_size=8,
    stride=8,
    vision_width=64,
    vision_layers=2,
    vision_heads=1,
    text_width=128,
    text_layers=1,
    text_heads=2,
    context_length=12,
    vocab_size=50,
)
OPENAI_FIGURES = {"input_resolution": 32, "context_length": 12, "vocab_size": 50}


def make_clip(config: ClipConfig = SQUARE) -> Clip:
    clip = Clip(config)
    clip.initialise(torch.Generator().manual_seed(0))
    return clip.eval()


def same_weights(one: Clip, other: Clip, **tolerance: float) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.allclose(a, b, **({"rtol": 0, "atol": 0} | tolerance)) for a, b in pairs)


@pytest.fixture
def clip() -> Clip:
    return make_clip()


@pytest.fixture
def state_file(clip, tmp_path) -> Path:
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    return tmp_path / "clip.pt"


def save_archive(clip: Clip, path: Path) -> None:
    """A TorchScript archive like OpenAI's: float16 weights, the temperature and the sizes as buffers."""
    clip.register_parameter("logit_scale", torch.nn.Parameter(torch.tensor(2.66)))
    for name, value in OPENAI_FIGURES.items():
        clip.register_buffer(name, torch.tensor(value))
    inputs = {"encode_image": torch.zeros(1, 3, 32, 32), "encode_text": torch.zeros(1, 12, dtype=torch.long)}
    traced = torch.jit.trace_module(clip, inputs, check_trace=False)
    traced.half().save(str(path))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore::torch.jit.TracerWarning")
def test_reads_openais_archive_without_running_it(tmp_path, monkeypatch):
    path = tmp_path / "ViT.pt"
    save_archive(make_clip(), path)
    assert torch.jit.load(str(path)).visual.proj.dtype == torch.float16

    def refuse(*args, **kwargs):
        raise AssertionError("the archive was run")

    monkeypatch.setattr(torch.jit, "load", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    loaded = load_pretrained(None, path)
    assert loaded.config == SQUARE
    assert all(parameter.dtype == torch.float32 and parameter.requires_grad for parameter in loaded.parameters())
    assert same_weights(loaded, make_clip(), rtol=1e-3, atol=1e-6)
    assert same_weights(loaded, make_clip().half().float())


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "base_model.", "module.base_model.", "_orig_mod."])
def test_reads_a_state_dict_wrapped_and_prefixed(clip, tmp_path, wrapper, prefix):
    state = {prefix + name: tensor for name, tensor in clip.state_dict().items()}
    loaded = state if wrapper is None else {"epoch": 3, "optimizer": {"state": {}}, wrapper: state}
    torch.save(loaded, tmp_path / "clip.bin")
    assert same_weights(load_pretrained(None, tmp_path / "clip.bin"), clip)


def test_reads_safetensors_whatever_the_name(clip, tmp_path):
    save_file(clip.state_dict(), tmp_path / "clip.safetensors")
    (tmp_path / "weights").write_bytes((tmp_path / "clip.safetensors").read_bytes())
    assert same_weights(load_pretrained(None, tmp_path / "clip.safetensors"), clip)
    assert same_weights(load_pretrained(None, tmp_path / "weights"), clip)


def test_reads_open_clips_state_dict(tmp_path):
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    theirs = CLIP(
        32,
        CLIPVisionCfg(layers=2, width=64, patch_size=8, image_size=32),
        CLIPTextCfg(context_length=12, vocab_size=50, width=128, heads=2, layers=1),
    ).eval()
    torch.save({"epoch": 32, "name": "run", "state_dict": theirs.state_dict()}, tmp_path / "epoch_32.pt")
    ours = load_pretrained(None, tmp_path / "epoch_32.pt")
    pixels, token_ids = torch.randn(2, 3, 32, 32), torch.randint(50, (2, 12))
    assert ours.config == replace(SQUARE, quick_gelu=False)
    with torch.no_grad():
        torch.testing.assert_close(ours.encode_image(pixels)[:, 0], theirs.encode_image(pixels), rtol=1e-5, atol=1e-5)
        text = ours.encode_text(token_ids)[torch.arange(2), token_ids.argmax(1)]
        torch.testing.assert_close(text, theirs.encode_text(token_ids), rtol=1e-5, atol=1e-5)


def test_float16_becomes_float32(clip, tmp_path):
    torch.save({name: tensor.half() for name, tensor in clip.state_dict().items()}, tmp_path / "half.pt")
    loaded = load_pretrained(None, tmp_path / "half.pt")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def test_a_state_dict_in_openais_format_wants_quick_gelu(clip, tmp_path, state_file):
    figures = {name: torch.tensor(value) for name, value in OPENAI_FIGURES.items()}
    torch.save(clip.state_dict() | figures, tmp_path / "openai.pt")
    assert load_pretrained(None, tmp_path / "openai.pt").config.quick_gelu
    assert not load_pretrained(None, state_file).config.quick_gelu


def test_a_model_name_can_ask_for_quick_gelu(tmp_path):
    torch.save(make_clip(SIZES["tiny"]).state_dict(), tmp_path / "tiny.pt")
    assert not load_pretrained("tiny", tmp_path / "tiny.pt").config.quick_gelu
    assert load_pretrained("tiny-quickgelu", tmp_path / "tiny.pt").config == replace(SIZES["tiny"], quick_gelu=True)


def test_heads_are_64_wide_unless_told(state_file):
    weights = read_weights(state_file)
    assert sizes_of(weights) == replace(SQUARE, quick_gelu=False)
    told = sizes_of(weights, vision_heads=4, text_heads=8)
    assert (told.vision_heads, told.text_heads) == (4, 8)


@pytest.mark.parametrize(
    ("size", "stride", "grid"), [((64, 24), 8, (8, 3)), ((32, 32), 6, (5, 5)), ((32, 32), 8, (4, 4))]
)
def test_resizes_the_positions_to_the_input_grid(clip, state_file, size, stride, grid):
    loaded = load_pretrained(None, state_file, image_size=size, stride=stride)
    expected = resize_positions(clip.visual.positional_embedding, (4, 4), grid)
    assert loaded.config.grid == grid
    assert torch.equal(loaded.visual.positional_embedding, expected)
    assert loaded.encode_image(torch.zeros(1, 3, *size)).shape == (1, 1 + grid[0] * grid[1], 32)


def test_positions_that_already_fit_are_kept(clip, tmp_path):
    person = make_clip(replace(SQUARE, image_size=(48, 16)))
    torch.save(person.state_dict(), tmp_path / "person.pt")
    assert same_weights(load_pretrained(None, tmp_path / "person.pt", image_size=(48, 16)), person)


def naive_resize(table: list[list[float]], rows: int, columns: int) -> list[list[float]]:
    """Bilinear interpolation at the centres of the new cells, one by one."""

    def along(length: int, new_length: int, index: int) -> tuple[int, int, float]:
        centre = min(max((index + 0.5) * length / new_length - 0.5, 0), length - 1)
        low = int(centre)
        return low, min(low + 1, length - 1), centre - low

    resized = []
    for row in range(rows):
        top, bottom, down = along(len(table), rows, row)
        cells = []
        for column in range(columns):
            left, right, across = along(len(table[0]), columns, column)
            upper = table[top][left] * (1 - across) + table[top][right] * across
            lower = table[bottom][left] * (1 - across) + table[bottom][right] * across
            cells.append(upper * (1 - down) + lower * down)
        resized.append(cells)
    return resized


@pytest.mark.parametrize("target", [(6, 2), (3, 5), (1, 1), (7, 9)])
def test_resizing_equals_bilinear_interpolation_cell_by_cell(target):
    positions = torch.randn(1 + 12, 5, generator=torch.Generator().manual_seed(0))
    resized = resize_positions(positions, (4, 3), target)
    assert torch.equal(resized[0], positions[0])
    for channel in range(5):
        expected = naive_resize(positions[1:, channel].view(4, 3).tolist(), *target)
        torch.testing.assert_close(resized[1:, channel].view(target), torch.tensor(expected))


def test_missing_and_unexpected_tensors_are_named(clip, tmp_path):
    state = clip.state_dict()
    del state["visual.ln_post.weight"]
    torch.save(state | {f"classifier.{index}": torch.zeros(2) for index in range(5)}, tmp_path / "odd.pt")
    with pytest.raises(InputError) as caught:
        load_pretrained(None, tmp_path / "odd.pt")
    message = str(caught.value)
    assert "1 missing (visual.ln_post.weight)" in message
    assert "5 unexpected (classifier.0, classifier.1, classifier.2, ...)" in message
    assert str(tmp_path / "odd.pt") in message
    assert len(message.splitlines()) == 3


def test_a_checkpoint_that_is_no_clip_is_explained(tmp_path):
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"7 missing \(positional_embedding, .*\n.*other\.pt"):
        load_pretrained(None, tmp_path / "other.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embed_dim": 16}, r"text_projection is \(128, 32\), expected \(128, 16\)"),
        ({"vocab_size": 60}, r"token_embedding\.weight is \(50, 128\), expected \(60, 128\)"),
        ({"patch_size": 4, "stride": 4}, r"visual\.conv1\.weight is \(64, 3, 8, 8\), expected \(64, 3, 4, 4\)"),
    ],
)
def test_a_checkpoint_of_another_shape_names_the_tensor_and_both_shapes(state_file, change, message):
    with pytest.raises(InputError, match=message) as caught:
        build_clip(replace(SQUARE, **change), read_weights(state_file))
    assert str(state_file) in str(caught.value)


def test_positions_of_no_known_grid_are_named_with_both_shapes(tmp_path):
    torch.save(make_clip(replace(SQUARE, image_size=(48, 16))).state_dict(), tmp_path / "person.pt")
    with pytest.raises(InputError, match=r"visual\.positional_embedding is \(13, 64\), expected \(26, 64\)"):
        load_pretrained(None, tmp_path / "person.pt", image_size=(40, 40))


class Malicious:
    """Creates a file when a careless reader unpickles it."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("how", ["torch.save", "plain pickle", "archive"])
def test_a_pickle_that_would_run_code_does_not_run(tmp_path, how):
    target, path = tmp_path / "pwned", tmp_path / "evil.pt"
    if how == "torch.save":
        torch.save({"state_dict": Malicious(target)}, path)
    elif how == "plain pickle":
        path.write_bytes(pickle.dumps(Malicious(target), protocol=2))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("evil/constants.pkl", pickle.dumps(()))
            archive.writestr("evil/data.pkl", pickle.dumps(Malicious(target), protocol=2))
    with pytest.raises(InputError, match=r"would run code on loading \(\w+\.mkdir\); it was not loaded") as caught:
        read_weights(path)
    assert str(path) in str(caught.value)
    assert "Do not trust it" in str(caught.value)
    assert not target.exists()
    pickle.loads(pickle.dumps(Malicious(target)))
    assert target.exists(), "the pickle of this test is harmless, so the test shows nothing"


@pytest.mark.parametrize("module", ["torch", "builtins", "torch._utils", "os", "__torch_evil__"])
def test_an_archive_may_name_only_what_builds_tensors(tmp_path, module):
    with zipfile.ZipFile(tmp_path / "evil.pt", "w") as archive:
        archive.writestr("evil/constants.pkl", b"")
        archive.writestr("evil/data.pkl", f"c{module}\neval\n.".encode())
    with pytest.raises(InputError, match=f"would run code on loading \\({module}.eval\\)"):
        read_weights(tmp_path / "evil.pt")


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore::torch.jit.TracerWarning")
def test_an_archive_with_a_tensor_beyond_its_storage_is_damaged(tmp_path):
    save_archive(make_clip(), tmp_path / "clip.pt")
    with zipfile.ZipFile(tmp_path / "clip.pt") as whole, zipfile.ZipFile(tmp_path / "cut.pt", "w") as cut:
        for name in whole.namelist():
            content = whole.read(name)
            cut.writestr(name, content[:2] if "/data/" in name else content)
    with pytest.raises(InputError, match=r"cannot be read[\s\S]*cut\.pt"):
        read_weights(tmp_path / "cut.pt")


@pytest.mark.parametrize(
    "content",
    [b"", b"not a checkpoint at all", b"\x08\0\0\0\0\0\0\0{", b"PK\x03\x04 broken", pickle.dumps(1, protocol=2)[:-1]],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_damaged_file_is_named(tmp_path, content, suffix):
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"The checkpoint cannot be read: .+\n.+broken.+\n.*fetch it again") as caught:
        read_weights(path)
    assert len(str(caught.value).splitlines()) == 3


def test_a_truncated_state_dict_is_named(state_file):
    state_file.write_bytes(state_file.read_bytes()[:-1000])
    with pytest.raises(InputError, match=r"cannot be read"):
        read_weights(state_file)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"state_dict": {}}, torch.zeros(2)])
def test_a_file_without_a_state_dict_is_explained(tmp_path, content):
    torch.save(content, tmp_path / "list.pt")
    with pytest.raises(InputError, match="holds no state dict"):
        read_weights(tmp_path / "list.pt")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no such checkpoint\n.*absent\.pt"):
        load_pretrained("ViT-B-16", tmp_path / "absent.pt")


def test_an_unknown_tag_lists_the_tags_of_the_model():
    with pytest.raises(
        UsageError, match=r"no pretrained tag of ViT-B-16 named 'opena'\nDid you mean openai\?.*laion2b_s34b_b88k"
    ):
        load_pretrained("ViT-B-16", "opena")


def test_an_unknown_model_lists_the_models():
    with pytest.raises(UsageError, match=r"no model named 'ViT-B-61'\nDid you mean ViT-B-16\?"):
        load_pretrained("ViT-B-61", "openai")


def test_a_model_without_published_weights_is_explained():
    with pytest.raises(UsageError, match=r"no published weights of tiny\n.*--pretrained none"):
        load_pretrained("tiny", "openai")


def test_a_tag_needs_a_model():
    with pytest.raises(UsageError, match="needs the name of a model"):
        load_pretrained(None, "openai")


@pytest.fixture
def no_caches(monkeypatch, tmp_path) -> Path:
    """An empty home and an empty cache of the hub; returns the home."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repository, name: None)
    return tmp_path


@pytest.mark.parametrize(
    ("tag", "place", "name"),
    [("openai", "ViT-B-16.pt", "ViT-B-16-quickgelu"), ("laion2b_s34b_b88k", "laion/CLIP-ViT-B-16", "ViT-B-16")],
)
def test_without_network_the_error_says_where_to_put_the_file(monkeypatch, no_caches, tag, place, name):
    def unreachable(request, timeout):
        raise URLError("no network")

    monkeypatch.setattr("tiprctl.models.registry.urlopen", unreachable)
    monkeypatch.setattr("open_clip.pretrained.download_pretrained", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(InputError, match=f"--model {name} --pretrained FILE.*the model {name}/FILE") as caught:
        find_pretrained("ViT-B-16", tag)
    assert f"The weights {tag} of ViT-B-16 are not on this machine" in str(caught.value)
    assert place in str(caught.value)
    assert len(str(caught.value).splitlines()) == 3


def test_a_host_that_refuses_the_probe_is_still_asked(monkeypatch, no_caches):
    def refuse(request, timeout):
        raise HTTPError(request.full_url, 403, "Forbidden", {}, None)

    monkeypatch.setattr("tiprctl.models.registry.urlopen", refuse)
    monkeypatch.setattr("open_clip.pretrained.download_pretrained", lambda entry: "downloaded.bin")
    assert find_pretrained("ViT-B-16", "openai") == Path("downloaded.bin")


@pytest.mark.parametrize(("tag", "quick_gelu"), [("openai", True), ("laion2b_s34b_b88k", False), ("OpenAI", True)])
def test_a_tag_decides_the_gelu(monkeypatch, no_caches, tag, quick_gelu):
    size = replace(SQUARE, image_size=(64, 16))
    torch.save(make_clip().state_dict(), no_caches / "download.pt")
    monkeypatch.setitem(SIZES, "ViT-B-16", size)
    monkeypatch.setattr("tiprctl.models.registry.urlopen", lambda request, timeout: nullcontext())
    monkeypatch.setattr("open_clip.pretrained.download_pretrained", lambda entry: str(no_caches / "download.pt"))
    loaded = load_pretrained("ViT-B-16", tag)
    assert loaded.config == replace(size, quick_gelu=quick_gelu)


def test_what_is_on_the_machine_is_used_before_the_network(monkeypatch, no_caches):
    monkeypatch.setattr("tiprctl.models.registry.urlopen", lambda *_, **__: pytest.fail("asked the network"))
    in_hub_cache = {("timm/vit_base_patch16_clip_224.openai", "open_clip_pytorch_model.bin"): "cached.bin"}
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *name: in_hub_cache.get(name))
    assert find_pretrained("ViT-B-16", "openai") == Path("cached.bin")

    by_hand = no_caches / ".cache" / "clip" / "ViT-B-16.pt"
    by_hand.parent.mkdir(parents=True)
    by_hand.touch()
    asked = []
    monkeypatch.setattr(
        "open_clip.pretrained.download_pretrained", lambda entry, **how: asked.append(how) or str(by_hand)
    )
    assert find_pretrained("ViT-B-16", "openai") == by_hand
    assert asked == [{"prefer_hf_hub": False}]
