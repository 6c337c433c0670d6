"""Sentences: true where they say so, balanced, and worded inside the vocabulary."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapes_oracle as oracle
from numpy.typing import NDArray
from transformers import BertTokenizer

from madtp_cli.data.sentences import (
    FAMILIES,
    FAMILY_NAMES,
    MAX_TOKENS,
    PHRASES,
    VOCABULARY,
    phrase_words,
    token_ids,
)
from madtp_cli.data.shapes import SAMPLES_PER_BLOCK, Block, make_block

Array = NDArray[Any]


@pytest.fixture(scope="module")
def blocks() -> list[Block]:
    return [make_block(3, "train", number) for number in range(40)]


def test_every_label_is_what_reading_the_objects_says(blocks: list[Block]) -> None:
    for block in blocks:
        for sample, sentence in enumerate(block.sentences.texts):
            left, right = (block.scenes.objects(2 * (sample // 8) + side) for side in (0, 1))
            assert oracle.is_true(sentence, left, right) == block.sentences.labels[sample], sentence


def test_text_counts_are_counts_of_the_first_noun_phrase(blocks: list[Block]) -> None:
    for block in blocks[:10]:
        for sample, sentence in enumerate(block.sentences.texts):
            phrase = oracle.first_phrase(sentence)
            counted = [oracle.count(phrase, block.scenes.objects(2 * (sample // 8) + side)) for side in (0, 1)]
            assert block.sentences.text_counts[sample].tolist() == counted, sentence


def test_each_pair_gets_four_true_and_four_false_sentences(blocks: list[Block]) -> None:
    for block in blocks:
        assert (block.sentences.labels.reshape(-1, 8).sum(1) == 4).all()


def test_each_sentence_is_true_of_one_pair_and_false_of_another(blocks: list[Block]) -> None:
    for block in blocks:
        uses = defaultdict(list)
        for sample, (text, label) in enumerate(zip(block.sentences.texts, block.sentences.labels, strict=True)):
            uses[text].append((bool(label), sample // 8))
        assert len(uses) == SAMPLES_PER_BLOCK // 2
        for of_text in uses.values():
            assert sorted(label for label, _ in of_text) == [False, True]
            assert of_text[0][1] != of_text[1][1]


def test_labels_are_balanced_within_each_family_and_wording_varies(blocks: list[Block]) -> None:
    labels = defaultdict(list)
    openings = defaultdict(set)
    for block in blocks:
        sentences = block.sentences
        for text, label, family in zip(sentences.texts, sentences.labels, sentences.families, strict=True):
            labels[family].append(label)
            openings[family].add(text.split()[0])
    assert set(labels) == set(FAMILY_NAMES)
    assert len(FAMILY_NAMES) >= 9
    total = sum(map(len, labels.values()))
    for family, of_family in labels.items():
        assert np.mean(of_family) == 0.5
        assert len(of_family) > 0.6 * total / len(FAMILY_NAMES)
        assert len(openings[family]) >= 2
        assert 2 <= len(FAMILIES[family].wordings) <= 3


def test_true_and_false_sentences_come_in_random_order(blocks: list[Block]) -> None:
    by_place = np.mean([b.sentences.labels.reshape(-1, 8) for b in blocks], axis=(0, 1))
    assert (np.abs(by_place - 0.5) < 0.06).all()  # 1,280 pairs: standard error 0.014


def _features(blocks: list[Block]) -> tuple[Array, Array, Array]:
    """Words and pairs of words of each sentence, what its two images hold, and its label."""
    texts, images, labels = [], [], []
    for block in blocks:
        tables = block.scenes.count_table().reshape(-1, 2 * PHRASES)
        images.append(np.repeat(tables, 8, axis=0))
        labels.append(block.sentences.labels)
        for ids in block.sentences.tokens:
            bag = np.zeros(len(VOCABULARY) + 512)
            bag[ids] = 1
            for one, two in itertools.pairwise(ids):
                bag[len(VOCABULARY) + (one * 71 + two) % 512] = 1
            texts.append(bag)
    return np.array(texts), np.concatenate(images).astype(float), np.concatenate(labels)


def _logistic_regression(features: Array, labels: Array) -> Array:
    weights = np.zeros(features.shape[1])
    for _ in range(100):
        shown = 1 / (1 + np.exp(-features @ weights))
        weights -= 0.5 * (features.T @ (shown - labels) / len(labels) + 1e-4 * weights)
    return weights


@pytest.mark.parametrize("blind_to", ["images", "text"])
def test_a_classifier_that_sees_only_one_side_stays_at_chance(blocks: list[Block], blind_to: str) -> None:
    texts, images, labels = _features(blocks)
    features = texts if blind_to == "images" else images
    seen = len(features) * 3 // 4
    weights = _logistic_regression(features[:seen], labels[:seen])
    right = (features[seen:] @ weights > 0) == labels[seen:]
    assert 0.47 <= right.mean() <= 0.53


def test_that_classifier_finds_what_its_side_shows(blocks: list[Block]) -> None:
    """Show that chance above is the data's merit, not the classifier's fault."""
    texts, images, _ = _features(blocks)
    seen = len(texts) * 3 // 4
    for features, shown in (
        (texts, np.array([" no " in text for b in blocks for text in b.sentences.texts])),
        (images, images[:, 0] > 0),  # small red circles on the left
    ):
        weights = _logistic_regression(features[:seen], shown[:seen])
        assert ((features[seen:] @ weights > 0) == shown[seen:]).mean() > 0.9


def test_the_most_frequent_label_of_a_sentence_stays_at_chance(blocks: list[Block]) -> None:
    votes: Counter[str] = Counter()
    for block in blocks[:30]:
        for text, label in zip(block.sentences.texts, block.sentences.labels, strict=True):
            votes[text] += 1 if label else -1
    right = [
        (votes[text] >= 0) == label
        for block in blocks[30:]
        for text, label in zip(block.sentences.texts, block.sentences.labels, strict=True)
    ]
    assert 0.47 <= np.mean(right) <= 0.53


def test_sentences_stay_inside_the_vocabulary_and_length(blocks: list[Block]) -> None:
    assert len(set(VOCABULARY)) == len(VOCABULARY)
    assert VOCABULARY[:5] == ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    unknown = VOCABULARY.index("[UNK]")
    for block in blocks:
        for text, ids in zip(block.sentences.texts, block.sentences.tokens, strict=True):
            assert len(ids) == len(text.split()) + 2 <= MAX_TOKENS
            assert unknown not in ids


def test_ids_are_those_of_a_bert_tokenizer(blocks: list[Block], tmp_path: Path) -> None:
    file = tmp_path / "vocab.txt"
    file.write_text("\n".join(VOCABULARY) + "\n")
    tokenizer = BertTokenizer.from_pretrained(str(tmp_path))
    tokenizer.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
    assert len(tokenizer) == len(VOCABULARY)
    for text in blocks[0].sentences.texts:
        # BLIP replaces [CLS] at the start of a sentence by [ENC].
        expected = tokenizer(text)["input_ids"]
        expected[0] = tokenizer.convert_tokens_to_ids("[ENC]")
        assert token_ids(text) == expected


def test_a_word_outside_the_vocabulary_is_unknown() -> None:
    assert token_ids("a zebra")[2] == VOCABULARY.index("[UNK]")


def test_noun_phrases_name_size_colour_and_shape_in_this_order() -> None:
    words = {phrase_words(phrase, plural) for phrase in range(PHRASES) for plural in (False, True)}
    assert len(words) == 2 * PHRASES
    assert {"object", "objects", "large red circles", "small square", "cyan objects"} <= words
