"""ROUGE of a checkpoint's headlines on a split.

Usage: evaluate.py CHECKPOINT_DIR DATA_DIR/test.json OUT.json [NUM_BEAMS]
"""

import json
import pathlib
import statistics
import sys

import torch
from rouge_score.rouge_scorer import RougeScorer
from tokenizers import ByteLevelBPETokenizer
from transformers import BartForConditionalGeneration


def main() -> None:
    checkpoint, split, out = map(pathlib.Path, sys.argv[1:4])
    num_beams = int(sys.argv[4]) if len(sys.argv) > 4 else 4
    torch.set_num_threads(2)
    tokenizer = ByteLevelBPETokenizer(
        str(checkpoint / "vocab.json"), str(checkpoint / "merges.txt")
    )
    model = BartForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    rows = []
    for text, reference in json.loads(split.read_text()):
        ids = torch.tensor([[0] + tokenizer.encode(text).ids[:158] + [2]])
        with torch.inference_mode():
            output = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                num_beams=num_beams,
                max_length=32,
                do_sample=False,
                forced_bos_token_id=0,
                no_repeat_ngram_size=3,
                length_penalty=1.0,
                early_stopping=num_beams > 1,
                decoder_start_token_id=2,
                bos_token_id=0,
                eos_token_id=2,
                pad_token_id=1,
            )[0].tolist()
        headline = tokenizer.decode([i for i in output if i > 4]).strip()
        scores = scorer.score(reference, headline)
        rows.append(
            {
                "text": text,
                "reference": reference,
                "headline": headline,
                **{k: v.fmeasure for k, v in scores.items()},
            }
        )
    summary = {
        k: round(100 * statistics.fmean(r[k] for r in rows), 2)
        for k in ("rouge1", "rouge2", "rougeL")
    }
    out.write_text(
        json.dumps({"texts": len(rows), "num_beams": num_beams, **summary, "rows": rows}, indent=1)
    )
    print(len(rows), num_beams, summary)


if __name__ == "__main__":
    main()
