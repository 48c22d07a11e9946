"""Train the mini BART on (text, headline) pairs, on a CPU, with PyTorch and transformers.

Usage: train.py DATA_DIR OUT_DIR [EPOCHS]

Ran with torch 2.13.0 and transformers 4.57.6, 10 epochs, on 2 cores.
"""

import json
import pathlib
import random
import sys
import time

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import BartConfig, BartForConditionalGeneration

START, PAD, END = 0, 1, 2
SOURCE, TARGET = 160, 32  # tokens, both ends included
BATCH_TOKENS = 6000  # padded source tokens per step
LEARNING_RATE, WARM_UP = 1e-3, 400

Example = tuple[list[int], list[int]]


def read(path: pathlib.Path, tokenizer: ByteLevelBPETokenizer) -> list[Example]:
    ids = lambda text, limit: [START] + tokenizer.encode(text).ids[: limit - 2] + [END]  # noqa: E731
    return [
        (ids(text, SOURCE), ids(headline, TARGET))
        for text, headline in json.loads(path.read_text())
    ]


def batches(data: list[Example], shuffle: bool = True) -> list[list[int]]:
    """Row numbers grouped by similar source length, at most BATCH_TOKENS padded tokens each."""
    order = list(range(len(data)))
    if shuffle:
        random.shuffle(order)
    grouped = []
    for start in range(0, len(order), 4096):
        batch: list[int] = []
        longest = 0
        for row in sorted(order[start : start + 4096], key=lambda row: len(data[row][0])):
            longest = max(longest, len(data[row][0]))
            if longest * (len(batch) + 1) > BATCH_TOKENS:
                grouped.append(batch)
                batch, longest = [], len(data[row][0])
            batch.append(row)
        if batch:
            grouped.append(batch)
    if shuffle:
        random.shuffle(grouped)
    return grouped


def collate(
    data: list[Example], batch: list[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Source ids (rows, source), decoder inputs (rows, target) and labels (rows, target).

    Labels are -100, which the loss ignores, where they are padded.
    """
    source = max(len(data[row][0]) for row in batch)
    target = max(len(data[row][1]) for row in batch)
    ids = torch.full((len(batch), source), PAD)
    labels = torch.full((len(batch), target), -100)
    inputs = torch.full((len(batch), target), PAD)
    for i, row in enumerate(batch):
        text, headline = data[row]
        ids[i, : len(text)] = torch.tensor(text)
        labels[i, : len(headline)] = torch.tensor(headline)
        inputs[i, 0] = END
        inputs[i, 1 : len(headline)] = torch.tensor(headline[:-1])
    return ids, inputs, labels


def main() -> None:
    folder, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    epochs = int(sys.argv[3]) if len(sys.argv) > 3 else 10
    torch.set_num_threads(2)
    torch.manual_seed(0)
    random.seed(0)
    tokenizer = ByteLevelBPETokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    train, valid = read(folder / "train.json", tokenizer), read(folder / "valid.json", tokenizer)
    model = BartForConditionalGeneration(
        BartConfig(
            vocab_size=len(tokenizer.get_vocab()),
            d_model=256,
            encoder_layers=3,
            decoder_layers=3,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=1024,
            decoder_ffn_dim=1024,
            max_position_embeddings=512,
            dropout=0.1,
            scale_embedding=False,
            init_std=0.02,
            normalize_before=False,
        )
    )
    total = len(batches(train)) * epochs
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / WARM_UP, max(0.0, (total - step) / (total - WARM_UP))),
    )
    smoothed = torch.nn.CrossEntropyLoss(ignore_index=-100, label_smoothing=0.1)
    began = time.time()
    for epoch in range(epochs):
        model.train()
        losses = []
        for batch in batches(train):
            ids, inputs, labels = collate(train, batch)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = model(
                    input_ids=ids,
                    attention_mask=(ids != PAD).long(),
                    decoder_input_ids=inputs,
                    use_cache=False,
                ).logits
            loss = smoothed(logits.float().reshape(-1, logits.shape[-1]), labels.reshape(-1))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        model.eval()
        nll = tokens = 0.0
        with torch.no_grad():
            for batch in batches(valid, shuffle=False):
                ids, inputs, labels = collate(valid, batch)
                logits = model(
                    input_ids=ids,
                    attention_mask=(ids != PAD).long(),
                    decoder_input_ids=inputs,
                    use_cache=False,
                ).logits
                count = (labels != -100).sum().item()
                nll += (
                    torch.nn.functional.cross_entropy(
                        logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), ignore_index=-100
                    ).item()
                    * count
                )
                tokens += count
        print(
            epoch,
            "train",
            sum(losses) / len(losses),
            "valid nll",
            nll / tokens,
            "seconds",
            round(time.time() - began),
            flush=True,
        )
        model.save_pretrained(out)


if __name__ == "__main__":
    main()
