"""BERT as text tower: its tokens and token ids are those of `transformers`, and a run with it needs nothing else."""

import json
import re
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from console import run

from tiprctl.checkpoint import load_encoder, read_checkpoint, save_checkpoint
from tiprctl.config import ModelConfig, override
from tiprctl.errors import InputError, TiprError, UsageError
from tiprctl.models import bert, bert_weights
from tiprctl.models.bert_weights import load_bert
from tiprctl.models.compilation import checkpoint_blocks
from tiprctl.models.embedder import over_captions
from tiprctl.models.encoder import DualEncoder
from tiprctl.objectives.base import Role
from tiprctl.objectives.composition import Composition
from tiprctl.progress import Listener
from tiprctl.sources import load_embedder
from tiprctl.starting import build_start
from tiprctl.tokenizer import clean, default_tokenizer, row_lengths
from tiprctl.training import Trainer

transformers = pytest.importorskip("transformers")

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
MARKS = "!\"#$%&'()*,-./:;?é人"
WORDS = ["red", "green", "blue", "black", "coat", "person", "man", "view", "wear", "##ing"]
VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *LETTERS,
    *MARKS,
    *("##" + each for each in LETTERS),
    *WORDS,
]
CAPTIONS = ["A man wearing a red coat.", "Person"]
CPU = torch.device("cpu")


def save_bert(folder: Path, *, hidden: int = 16, layers: int = 2, seed: int = 0) -> Path:
    """A folder as `transformers` writes it, of a random BERT with the head that it was pretrained with."""
    sizes = {"vocab_size": len(VOCABULARY) + 3, "hidden_size": hidden, "num_hidden_layers": layers}
    config = transformers.BertConfig(**sizes, num_attention_heads=2, intermediate_size=32, initializer_range=0.3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformers.BertForMaskedLM(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert") / "small")


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """A copy of the weights that a test may spoil."""
    return shutil.copytree(saved, tmp_path / "bert")


@pytest.fixture
def tower(saved):
    return load_bert(str(saved)).eval()


def theirs(saved, token_ids):
    """What `transformers` itself makes of the token ids, attention and all."""
    model = transformers.BertModel.from_pretrained(saved, attn_implementation="eager").eval()
    return model(token_ids, attention_mask=(token_ids != 0).long(), output_attentions=True)


def dual(tower, head="global", **options) -> DualEncoder:
    return DualEncoder(tiny.encoder().clip, head, options, bert=tower)


def read(tower, captions=CAPTIONS, **asked):
    token_ids = torch.from_numpy(tower.tokenizer(captions))
    return token_ids, tower.read(token_ids, **asked)


def test_tokens_and_attention_are_those_of_transformers(saved, tower):
    token_ids, tokens = read(tower, attention=True)
    expected = theirs(saved, token_ids)
    torch.testing.assert_close(tokens.values, expected.last_hidden_state)
    torch.testing.assert_close(tokens.attention, expected.attentions[-1].mean(dim=1)[:, 0])
    assert tokens.attention.std() > 0.01
    assert not tokens.attention[~tokens.visible].any()
    assert not tokens.attention.requires_grad
    assert torch.equal(tokens.whole, tokens.values[:, 0])
    assert tokens.length == 100


def test_words_are_what_lies_between_the_marks(tower):
    token_ids, tokens = read(tower)
    assert tokens.attention is None
    assert tokens.visible.sum(dim=1).tolist() == row_lengths(token_ids).tolist() == [10, 3]
    assert torch.equal(tokens.words, (token_ids > 3) & tokens.visible)
    assert torch.equal(tokens.local, tokens.words)


def test_padding_changes_nothing(tower):
    _, both = read(tower)
    _, alone = read(tower, CAPTIONS[1:])
    torch.testing.assert_close(both.values[1:, :3], alone.values)


def test_captions_in_batches_of_like_length_keep_their_order(tower):
    captions = ["zz " * length for length in (9, 1, 5)]
    token_ids = torch.from_numpy(tower.tokenizer(captions))
    encoder = dual(tower).eval()
    expected = torch.cat([encoder.text_features(torch.from_numpy(tower.tokenizer(each))) for each in captions])
    torch.testing.assert_close(over_captions(encoder.text_features, token_ids), expected)


@pytest.mark.parametrize(
    "text", ["A man, wearing\tred-green coats!", "Café's “view” 42", "", "人 coat ☃", "x" * 120, "[SEP] man <b>"]
)
def test_token_ids_are_those_of_transformers(saved, tower, text):
    expected = transformers.BertTokenizer(str(saved / "vocab.txt"), do_lower_case=True)(clean(text))["input_ids"]
    assert [tower.tokenizer.start, *tower.tokenizer.encode(text), tower.tokenizer.end] == expected


def test_broken_text_is_repaired_before_it_is_read(tower):
    assert tower.tokenizer.encode("man&#39;s caf\u00c3\u00a9") == tower.tokenizer.encode("man's caf\u00e9")


def test_pieces_tell_where_each_word_starts(tower):
    text = "A man, wearing coats"
    pieces = list(tower.tokenizer.pieces(text))
    assert [start for start, _ in pieces] == [0, 2, 5, 7, 15]
    assert [[VOCABULARY[token] for token in tokens] for _, tokens in pieces][3:] == [["wear", "##ing"], ["coat", "##s"]]


def test_a_long_caption_is_cut_to_a_hundred_tokens_and_closes(tower):
    token_ids, tokens = read(tower, "coat " * 150)
    assert token_ids.shape == (1, 100)
    assert token_ids[0, -1] == tower.tokenizer.end
    assert tokens.visible.all()
    with pytest.raises(UsageError, match="101 tokens exceed the context of 100"):
        tower.read(torch.ones(1, 101, dtype=torch.long))


def test_the_vocabulary_may_be_that_of_tokenizer_json(folder):
    expected = load_bert(str(folder)).tokenizer(CAPTIONS)
    vocabulary = {token: index for index, token in reversed(list(enumerate(VOCABULARY)))}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    (folder / "vocab.txt").unlink()
    assert (load_bert(str(folder)).tokenizer(CAPTIONS) == expected).all()


def test_beside_bert_the_image_tower_stands_alone_and_unprojected(tower):
    clip = tiny.encoder().clip
    encoder = DualEncoder(clip, bert=tower)
    names = [name for name, _ in encoder.named_parameters()]
    assert all(name.startswith(("clip.visual.", "bert.")) for name in names)
    assert "clip.visual.proj" not in names
    batch = tiny.batch()
    projected = encoder.see(batch.pixels).values @ clip.visual.proj
    torch.testing.assert_close(projected, clip.encode_image(batch.pixels))


def test_both_towers_learn_slowly_and_gradients_reach_them(tower):
    encoder = dual(tower, "parts")
    composition = Composition(encoder, tiny.objectives("sdm", "mgf", "fcd"), identities=3)
    base = {id(each) for role, owner in composition.roles() if role is Role.BASE for each in owner.parameters()}
    assert {id(each) for tower in encoder.towers for each in tower.parameters()} <= base
    batch = tiny.batch()
    batch.token_ids = torch.from_numpy(tower.tokenizer(["a man in red", "green", "blue coat", "a", "black", "view"]))
    composition(batch, 0.0, torch.Generator()).total.backward()
    idle = {name for name, each in encoder.bert.named_parameters() if each.grad is None}
    assert not idle
    assert encoder.clip.visual.conv1.weight.grad.any()


def test_checkpointed_layers_give_the_same_gradients_and_dropout(saved):
    def gradients(tower):
        torch.manual_seed(0)
        read(tower)[1].values.square().sum().backward()
        return {name: each.grad for name, each in tower.named_parameters()}

    with torch.random.fork_rng(devices=[]):
        plain, checkpointed = (load_bert(str(saved)).train() for _ in range(2))
        expected = gradients(plain)
        checkpoint_blocks(checkpointed)
        calls, layer = [], checkpointed.model.encoder.layer[0]
        layer.output.register_forward_pre_hook(lambda *_: calls.append(1))
        found = gradients(checkpointed)
    assert len(calls) == 2
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=1e-6)


def trainer(manifest, folder, weights, listener=None, **changes) -> Trainer:
    settings = {"model.text_encoder": f"bert:{weights}", "amp": "off", **changes}
    return Trainer(override(tiny.recipe(), settings), manifest, folder, device=CPU, listener=listener)


@pytest.fixture
def wide(tmp_path) -> Path:
    """A BERT as wide as the encoder `tiny`."""
    return save_bert(tmp_path / "wide", hidden=128, layers=1)


class Interrupting(Listener):
    """Presses Ctrl-C after five steps, in the second epoch."""

    steps = 0

    def on_step(self, samples):
        self.steps += 1
        if self.steps == 5:
            signal.raise_signal(signal.SIGINT)


def test_a_resumed_training_equals_an_uninterrupted_one_without_the_folder(cuhk_manifest, tmp_path, wide):
    trainer(cuhk_manifest, tmp_path / "whole", wide).run()
    assert trainer(cuhk_manifest, tmp_path / "parts", wide, Interrupting()).run().interrupted
    shutil.rmtree(wide)
    trainer(cuhk_manifest, tmp_path / "parts", wide).run()
    whole, parts = (load_encoder(tmp_path / name / "last.safetensors")[0].state_dict() for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_dropout_is_drawn_anew_at_each_step(cuhk_manifest, tmp_path, wide):
    training = trainer(cuhk_manifest, tmp_path / "run", wide)
    bert = training.composition.encoder.bert
    batch = next(training.batches.epoch(0, skip=0, device=CPU))
    drawn, forward = [], bert.read

    def spy(token_ids, **asked):
        tokens = forward(token_ids, **asked)
        drawn.append(tokens.values.detach())
        return tokens

    bert.read = spy
    training.descent.optimizer.step = lambda *_: None
    training.composition.train()
    for step in (0, 1, 0):
        training.progress.step = step
        training._step(batch)
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


MINIATURE = [
    *("--recipe", "synth", "--model", "tiny", "--pretrained", "none", "--batch-size", "4", "--epochs", "2"),
    *("--set", "captions.mask_content=0", "--set", "captions.mask_other=0"),
]


@pytest.fixture
def trained(home, wide) -> Path:
    """A run of the parts of CFine over BERT, whose folder is gone."""
    run("train", *MINIATURE, "--aux", "mgf,cfr,fcd", "--text-encoder", f"bert:{wide}", "--output", "runs/a")
    shutil.rmtree(wide)
    return home / "runs" / "a"


def test_a_run_is_measured_searched_and_built_on_without_the_folder(trained, home, monkeypatch):
    monkeypatch.setenv("TIPRCTL_CACHE", str(home / "cache"))
    assert json.loads((trained / "run.json").read_text())["config"]["model"]["text_encoder"].startswith("bert:")
    assert json.loads(run("eval", trained, "--json").stdout)["results"][0]["queries"] == 8
    long = "a red coat " * 50
    found = run("query", long, "--gallery", "data/CUHK-PEDES/imgs", "--model", trained, "--json")
    assert len(json.loads(found.stdout)["results"][0]["hits"]) == 10
    assert "cut after 98 of its 150 tokens" in " ".join(found.stderr.split())
    again = run("train", *MINIATURE, "--aux", "mgf,cfr,fcd", "--pretrained", trained, "--output", "runs/b")
    assert "warning" not in again.stderr
    first, second = (load_encoder(Path("runs") / name / "best.safetensors")[0] for name in "ab")
    assert second.bert.tokenizer.vocabulary == first.bert.tokenizer.vocabulary == VOCABULARY
    assert second.bert.sizes == first.bert.sizes


def test_a_checkpoint_is_started_from_with_its_weights(trained):
    encoder, header = load_encoder(trained / "best.safetensors")
    model = override(tiny.recipe(), {"model": header["config"]["model"], "model.pretrained": str(trained)}).model
    start = build_start(model, torch.Generator()).encoder
    ours, held = start.state_dict(), encoder.state_dict()
    assert ours.keys() == held.keys()
    assert all(torch.equal(ours[name], held[name]) for name in held)


def test_a_checkpoint_of_one_text_encoder_is_not_given_to_another(trained, wide):
    asked = ["--aux", "mgf,cfr,fcd", "--pretrained", trained, "--output", "runs/b"]
    stderr = " ".join(run("train", *MINIATURE, *asked, "--text-encoder", "clip", exit_code=3).stderr.split())
    assert f"has the text encoder bert:{wide}, not clip" in stderr
    assert "Leave out --text-encoder" in stderr


def test_one_bert_by_two_names_is_one(trained):
    file = trained / "best.safetensors"
    tensors, header = read_checkpoint(file)
    header["config"]["model"]["text_encoder"] = "bert"
    save_checkpoint(file, tensors, header)
    model = override(tiny.recipe(), {"model": header["config"]["model"], "model.pretrained": str(trained)}).model
    assert build_start(replace(model, text_encoder=f"bert:{model.bert}"), torch.Generator()).encoder.bert is not None
    with pytest.raises(InputError, match="has the text encoder bert, not bert:another"):
        build_start(replace(model, text_encoder="bert:another"), torch.Generator())


def test_models_that_read_otherwise_are_measured_on_one_split(trained):
    run("train", *MINIATURE, "--output", "runs/clip")
    both = json.loads(run("eval", trained, "runs/clip", "--json").stdout)["results"]
    alone = json.loads(run("eval", "runs/clip", "--json").stdout)["results"]
    assert both[2:] == alone


def test_the_default_is_the_bert_of_cfine():
    assert ModelConfig().bert is None
    assert ModelConfig(text_encoder="bert").bert == "bert-base-uncased"
    assert ModelConfig(text_encoder="bert:a/b").bert == "a/b"


@pytest.mark.parametrize(
    ("text_encoder", "hint"),
    [
        ("bret", "Did you mean bert? "),
        ("Bert", "Did you mean bert? "),
        ("bert:", "Did you mean bert? "),
        ("clip:b", "Did you mean clip? "),
        ("", ""),
    ],
)
def test_other_text_encoders_are_refused_with_the_choices(text_encoder, hint):
    with pytest.raises(UsageError) as raised:
        override(tiny.recipe(), {"model.text_encoder": text_encoder})
    assert raised.value.what == f"There is no text encoder named {text_encoder!r}"
    assert raised.value.where == "--text-encoder"
    assert raised.value.remedy.startswith(f"{hint}Choices: ")
    assert sorted(raised.value.remedy.rpartition(": ")[2].rstrip(".").split(", ")) == [
        "bert",
        "bert:FOLDER",
        "bert:NAME",
        "clip",
    ]


def test_a_folder_without_its_kind_is_told_how_it_is_given(folder):
    with pytest.raises(UsageError) as raised:
        ModelConfig(text_encoder=str(folder))
    assert raised.value.remedy == f"Give the BERT in it: --text-encoder bert:{folder}"


def test_the_command_names_its_option_for_the_text_encoder(home):
    stderr = run("train", *MINIATURE, "--text-encoder", "bret", exit_code=2).stderr
    assert "There is no text encoder named 'bret'\n  --text-encoder\n  Did you mean bert?" in stderr


def test_towers_of_two_widths_are_refused_with_both(saved, home):
    done = run("train", *MINIATURE, "--text-encoder", f"bert:{saved}", "--output", "runs/a", exit_code=2)
    stderr = " ".join(done.stderr.split())
    assert "BERT's tokens are 16 wide, the image tower's 128" in stderr
    assert "Leave out --text-encoder" in stderr
    assert "ViT-B-16" in stderr
    assert not (home / "runs" / "a").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objectives": [{"name": "mlm"}]}, "Masked words"),
        ({"objectives": [{"name": "sdm"}, {"name": "mlm", "start": 0.5}]}, "Masked words"),
        ({"captions.mask_content": 0.1, "captions.mask_other": 0.1}, "vocabulary of CLIP"),
    ],
)
def test_what_only_clip_can_read_is_refused(cuhk_manifest, tmp_path, wide, changes, message):
    with pytest.raises(UsageError, match=message) as caught:
        trainer(cuhk_manifest, tmp_path / "run", wide, **changes)
    assert "with the text encoder clip" in str(caught.value)


def rewrite(folder, **changes):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | changes))


SPOILT = {
    "no sizes": (lambda folder: (folder / "config.json").unlink(), "lacks config.json"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "lacks model.safetensors"),
    "no vocabulary": (lambda folder: (folder / "vocab.txt").unlink(), "lacks vocab.txt"),
    "broken sizes": (lambda folder: (folder / "config.json").write_text("{"), "config.json .* is damaged"),
    "sizes in a list": (lambda folder: (folder / "config.json").write_text("[]"), "config.json .* is damaged"),
    "another model": (lambda folder: rewrite(folder, model_type="roberta"), "those of a roberta, not of a BERT"),
    "a size of another type": (lambda folder: rewrite(folder, hidden_size="wide"), "hidden_size"),
    "heads that do not divide": (lambda folder: rewrite(folder, num_attention_heads=3), "cannot share a width of 16"),
    "other sizes": (lambda folder: rewrite(folder, intermediate_size=48), "not those of the BERT.*size mismatch"),
    "more layers": (lambda folder: rewrite(folder, num_hidden_layers=3), "not those of the BERT.*Missing"),
    "few embeddings": (lambda folder: rewrite(folder, vocab_size=20), f"has {len(VOCABULARY)} tokens, the model 20"),
    "another vocabulary": (lambda folder: (folder / "vocab.txt").write_text("a\nb\n"), r"does not begin with \[PAD\]"),
    "binary vocabulary": (lambda folder: (folder / "vocab.txt").write_bytes(b"\xff\xfe"), "vocab.txt .* is damaged"),
    "damaged weights": (lambda folder: (folder / "model.safetensors").write_bytes(b"{}"), "cannot be read"),
}


@pytest.mark.parametrize(("spoil", "message"), SPOILT.values(), ids=SPOILT)
def test_a_folder_that_is_no_bert_says_what_is_wrong_and_where(folder, spoil, message):
    spoil(folder)
    with pytest.raises(TiprError, match=message) as caught:
        load_bert(str(folder))
    assert str(folder) in caught.value.where
    assert caught.value.remedy


@pytest.mark.parametrize("source", ["./none", "/none/at/all", "a/b/c"])
def test_a_folder_that_is_not_there_is_not_looked_for_elsewhere(source):
    with pytest.raises(InputError, match="There is no such folder of BERT weights"):
        load_bert(source)


def test_weights_that_cannot_be_downloaded_say_how_to_bring_them(monkeypatch, tmp_path):
    def silent(address):
        raise OSError("no network")

    monkeypatch.setattr(bert_weights, "await_host", silent)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda name, file: None)
    with pytest.raises(
        InputError, match=r"no folder bert-base-uncased here, and BERT weights of that name .* cannot be downloaded"
    ) as caught:
        load_bert("bert-base-uncased")
    assert caught.value.where.endswith("/bert-base-uncased")
    assert "--text-encoder bert:FOLDER" in caught.value.remedy


def test_weights_in_the_cache_ask_no_network(saved, monkeypatch):
    def cached(name, file):
        path = saved / file
        return str(path) if path.is_file() else None

    def refused(address):
        raise AssertionError(address)

    monkeypatch.setattr(bert_weights, "await_host", refused)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    assert load_bert("somebody/small").sizes == load_bert(str(saved)).sizes


def test_widths_are_compared_before_any_weights_are_fetched(saved, monkeypatch):
    fetched = []

    def snapshot(name, allow_patterns):
        fetched.append((name, allow_patterns))
        return str(saved)

    monkeypatch.setattr(bert_weights, "await_host", lambda address: None)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda name, file: None)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.setattr("tiprctl.starting.find_weights", lambda *_: pytest.fail("read CLIP's weights"))
    with pytest.raises(UsageError, match="BERT's tokens are 16 wide, the image tower's 768"):
        build_start(ModelConfig(text_encoder="bert:somebody/small"), torch.Generator())
    assert fetched == [("somebody/small", ["config.json"])]


def test_a_cache_with_the_sizes_alone_is_completed(saved, monkeypatch):
    fetched = []

    def snapshot(name, allow_patterns):
        fetched.append(allow_patterns)
        return str(saved)

    sizes = str(saved / "config.json")
    monkeypatch.setattr(bert_weights, "await_host", lambda address: None)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda _, file: sizes if file in sizes else None)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert bert_weights.find_sizes("somebody/small").hidden_size == 16
    assert fetched == []
    assert load_bert("somebody/small").width == 16
    assert fetched == [["config.json", "model.safetensors", "vocab.txt", "tokenizer.json"]]


def test_without_the_extra_a_run_says_what_to_install(trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match="not installed") as caught:
        load_bert("bert-base-uncased")
    assert "pip install 'tiprctl[bert]'" in caught.value.remedy
    with pytest.raises(UsageError, match="not installed"):
        load_embedder(trained, device=CPU)


def test_no_module_imports_the_libraries_before_they_are_needed():
    files = list(Path(bert.__file__).parents[1].rglob("*.py"))
    assert Path(bert.__file__) in files
    assert not [
        file for file in files if re.search(r"^\s*(import|from) (transformers|tokenizers)\b", file.read_text(), re.M)
    ]


def test_lengths_count_a_first_token_that_is_zero():
    token_ids = default_tokenizer()(["!~^", "a red coat"])
    assert 0 in token_ids[0, : row_lengths(token_ids)[0]]
    assert row_lengths(token_ids).tolist() == [5, 5]
    assert row_lengths(torch.from_numpy(token_ids)).tolist() == [5, 5]
