"""A judge that scores query and answer with a reward model: a Hugging Face sequence classifier with one output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from alignez_core.errors import JudgeUnavailable, brief
from alignez_core.proof.judges import Answered, by_score

_BATCH = 16


class RewardJudge:
    """Judge that scores each answer with the classifier's output.

    Args:
        path: directory or hub id; remote code never runs.
    Raises: JudgeUnavailable: the model cannot be loaded, or has not exactly one output.
    """

    def __init__(self, path: str, device: str = "cpu") -> None:
        self.name = f"reward:{path}"
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
            model = AutoModelForSequenceClassification.from_pretrained(path, trust_remote_code=False)
        except Exception as error:  # transformers raises many types of errors for broken files
            raise JudgeUnavailable(f"the reward model {path} cannot be loaded ({brief(error)})") from error
        if model.config.num_labels != 1:
            raise JudgeUnavailable(
                f"the reward model {path} has {model.config.num_labels} outputs; a reward model has one"
            )
        self._model: Any = model.to(torch.device(device)).eval()
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._model.config.pad_token_id = self._tokenizer.pad_token_id

    @torch.inference_mode()
    def scores(self, answers: Sequence[Answered]) -> list[float]:
        """One reward per answer, unbounded."""
        found: list[float] = []
        for start in range(0, len(answers), _BATCH):
            part = answers[start : start + _BATCH]
            if self._tokenizer.chat_template:
                texts = [
                    self._tokenizer.apply_chat_template(
                        [dict(turn) for turn in a.situation.messages(a.sample.query)]
                        + [{"role": "assistant", "content": a.text}],
                        tokenize=False,
                    )
                    for a in part
                ]
                batch = self._tokenizer(
                    texts, return_tensors="pt", padding=True, truncation=True, add_special_tokens=False
                )
            else:
                queries, replies = [a.sample.query for a in part], [a.text for a in part]
                batch = self._tokenizer(queries, replies, return_tensors="pt", padding=True, truncation=True)
            logits = self._model(**batch.to(self._model.device)).logits
            found += [float(value) for value in logits[:, 0].float()]
        return found

    def compare(self, left: Sequence[Answered], right: Sequence[Answered]) -> list[int]:
        return by_score(self.scores(left), self.scores(right), 0.0)

    def close(self) -> None:
        self._model = None
