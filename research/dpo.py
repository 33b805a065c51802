"""Direct preference optimisation with TRL and a LoRA adapter of PEFT: the training that figure 3 compares with.

Settings are those of the paper's appendix A.2: one epoch, batches of 16, learning rate 5e-5 with a cosine schedule and
a warmup of 10 %, gradients clipped at .3, AdamW, LoRA dropout .05. Deviations: the adapter's rank is the hidden size
÷ 16 (A.2's 256 of a 7B model) and its α half of that; below 10 steps there is no warmup, whose first step has a
learning rate of 0 and may be the only one; the weights are not quantised (nf4 needs a GPU); β, which A.2 does not
name, is TRL's .1.

Source: Rafailov et al., Direct Preference Optimization (arXiv 2305.18290).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignez_core.engines.common.loading import load_model
from alignez_core.prompts import PromptFormat
from alignez_core.spec.persona import GivenPair

_QUIET_S = 20.0


@dataclass(frozen=True)
class TrainSettings:
    """Settings of a training.

    Args:
        rank: of the adapter; None: hidden size ÷ 16.
        max_length: tokens of prompt and answer at most; longer texts are cut at the end.
    """

    rank: int | None = None
    learning_rate: float = 5e-5
    batch: int = 16
    epochs: int = 1
    max_length: int = 256
    beta: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class Trained:
    """Size and outcome of a training.

    Args:
        pairs: that were trained on; a prompt that leaves no room for an answer is dropped.
        tokens: of all prompts with answers, as often as they were trained on; the reference model reads them again.
        loss: of the last step, nats, before its update. accuracy: share of its pairs with a positive margin.
    """

    pairs: int
    tokens: int
    loss: float
    accuracy: float


def train(trainer: Any, out: Path) -> Trained:
    """Trains what `make_trainer` made and writes the merged model to `out`, as a Hugging Face directory."""
    trainer.train()
    most, rows = trainer.args.max_length, trainer.train_dataset
    lengths = [
        min(len(row["prompt_ids"]) + len(row[side]), most) for row in rows for side in ("chosen_ids", "rejected_ids")
    ]
    last = [entry for entry in trainer.state.log_history if "rewards/accuracies" in entry][-1]
    trainer.model.merge_and_unload().save_pretrained(out)
    trainer.processing_class.save_pretrained(out)
    tokens = round(sum(lengths) * trainer.args.num_train_epochs)
    return Trained(len(rows), tokens, round(float(last["loss"]), 4), round(float(last["rewards/accuracies"]), 4))


def make_trainer(
    path: str | Path,
    pairs: Sequence[GivenPair],
    form: PromptFormat,
    out: Path,
    settings: TrainSettings,
    *,
    dtype: str = "auto",
    device: str = "cpu",
) -> Any:
    """TRL's trainer of an adapter on the pairs; without the adapter the model is its own reference.

    Args:
        form: the prompt format in which the model is served, so that training sees the same prompts.
    Raises: ModelNotFound, OutOfMemory.
    """
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig
    from transformers import PrinterCallback
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    disable_progress_bars()
    loaded = load_model(path, device, dtype)
    model, tokenizer = loaded.model, loaded.tokenizer
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    rank = settings.rank or max(1, int(model.config.get_text_config().hidden_size) // 16)
    config = DPOConfig(
        output_dir=str(out / "trainer"),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch,
        gradient_accumulation_steps=1,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(len(pairs) / settings.batch) * settings.epochs // 10,
        max_grad_norm=0.3,
        optim="adamw_torch",
        beta=settings.beta,
        max_length=settings.max_length,
        seed=settings.seed,
        disable_dropout=False,  # it would be the adapter's too
        bf16=str(model.dtype) == "torch.bfloat16",
        activation_checkpointing=False,
        use_cpu=device == "cpu",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    adapter = LoraConfig(
        r=rank, lora_alpha=max(1, rank // 2), lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    rows = Dataset.from_list([preference_row(pair, form) for pair in pairs])
    trainer = DPOTrainer(
        model, args=config, train_dataset=rows, processing_class=tokenizer, peft_config=adapter, callbacks=[_progress()]
    )
    trainer.remove_callback(PrinterCallback)  # a line per step
    return trainer


def preference_row(pair: GivenPair, form: PromptFormat) -> dict[str, Any]:
    """A pair as TRL reads it: turns for the chat template, or texts to which TRL adds the end-of-sequence token.

    Serving takes the text of a special token inside a query as plain text; the tokenizer's own template does not.
    """
    if form.name == "chat":
        turns = (("user", pair.query), ("assistant", pair.preferred), ("assistant", pair.dispreferred))
        prompt, chosen, rejected = ([{"role": role, "content": text}] for role, text in turns)
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    return {
        "prompt": str(form.wrap(pair.query)),
        "chosen": f" {pair.preferred}",
        "rejected": f" {pair.dispreferred}",
    }


def _progress() -> Any:
    """A callback that prints a line now and then, in place of the trainer's own of every step."""
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

    class Progress(TrainerCallback):
        def __init__(self) -> None:
            self._shown = time.monotonic()

        def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
            now = time.monotonic()
            if now - self._shown >= _QUIET_S:
                self._shown = now
                print(f"  training: step {state.global_step}/{state.max_steps}", flush=True)

    return Progress()
