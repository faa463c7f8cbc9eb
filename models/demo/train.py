"""Trains the demo model from scratch and writes a checkpoint in the transformers layout, train-time branches kept.

    npm pack emoji-datasource-google@16.0.0 && tar xf emoji-datasource-google-*.tgz
    python train.py --emoji package --steps 6000 -o checkpoint

Each image is encoded once and asked several questions in one packed sequence: every question attends to the common
prefix (system turn and image) and to itself alone, at the positions it has when it is asked alone, so each is an
exact single-turn sample. An auxiliary loss on the encoder's tokens (which object's centre lies in this token's cell,
how many, the background's colour, the printed text) is what makes the encoder learn; its heads are thrown away.
"""

import argparse
import json
import math
import pathlib
import time

import camera
import dialogues
import numpy as np
import scenes
import torch
import torch.nn.functional as F
from dialogues import Turn
from scenes import CELLS, COLOR_NAMES, NAMES, SIZE, WORDS
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.pre_tokenizers import ByteLevel, Split
from transformers import (
    AutoConfig,
    FastVlmConfig,
    FastVlmForConditionalGeneration,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

PREFIX = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
ASK, ANSWER, END = "\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"
NEXT = "\n<|im_start|>user\n"  # after END
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"]
# The template of the published conversions: images first, then the text.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\n' + content['text'] }}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXTS = [str(n) for n in range(100)] + WORDS


def make_tokenizer():
    """A byte-level BPE of Qwen2's construction, trained on the questions and answers of this world."""
    rng = np.random.default_rng(5)
    corpus = [PREFIX + ANSWER]
    for _ in range(6000):
        scene = scenes.Scene(
            kind=str(rng.choice(["several", "count", "text"])),
            color=COLOR_NAMES[rng.integers(len(COLOR_NAMES))],
        )
        if scene.kind == "text":
            scene.text = TEXTS[rng.integers(len(TEXTS))]
        else:
            count = int(rng.integers(1, 7))
            scene.objects = [
                (
                    NAMES[rng.integers(len(NAMES))] if scene.kind == "several" else NAMES[count],
                    float(x),
                    float(rng.uniform(0, 256)),
                )
                for x in range(0, 40 * count, 40)
            ][:count]
        for _, question, answer in scenes.questions(scene, rng):
            corpus += [ASK + question, answer]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [Split(Regex(QWEN2_SPLIT), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        corpus,
        trainers.BpeTrainer(vocab_size=1020, initial_alphabet=ByteLevel.alphabet(), show_progress=False),
    )
    tokenizer.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=2048,
        additional_special_tokens=["<|im_start|>", "<image>"],
        extra_special_tokens={"image_token": "<image>"},
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer):
    vocab = (len(tokenizer) + 63) // 64 * 64
    config = FastVlmConfig(
        vision_config=AutoConfig.for_model(
            "timm_wrapper",
            architecture="fastvit_mci3",
            do_pooling=True,
            global_pool="avg",
            hidden_size=512,
            num_classes=0,
            initializer_range=0.02,
            model_args={
                "inference_mode": False,
                "embed_dims": [16, 32, 64, 128, 256],
                "layers": [1, 1, 3, 1, 1],
                "layer_scale_init_value": 0.1,
            },
        ).to_dict(),
        text_config=dict(
            model_type="qwen2",
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=2,
            vocab_size=vocab,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            rms_norm_eps=1e-6,
            rope_theta=1000000.0,
            bos_token_id=None,
            eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
            pad_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=CELLS * CELLS,
        tie_word_embeddings=True,
    )
    return FastVlmForConditionalGeneration(config)


@torch.no_grad()
def shrink_and_perturb(model, checkpoint, share):
    """Mixes the weights of a checkpoint into those that the model begins with (Ash and Adams, 2020)."""
    stored = FastVlmForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).state_dict()
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            value.lerp_(stored[name], share)


class Scenes(torch.utils.data.IterableDataset):
    """Endless batches: pixels [B,3,S,S] u8, rows of packed ids, labels, positions, blocks and weights, whose images they show, and
    auxiliary targets. A row for each image, and with photographs one for each pair of images too."""

    def __init__(self, emoji, photos, tokenizer, seed, batch, per_image):
        self.emoji, self.photos, self.tokenizer = emoji, photos, tokenizer
        self.seed, self.batch, self.per_image = seed, batch, per_image

    def __iter__(self):
        torch.set_num_threads(1)
        info = torch.utils.data.get_worker_info()
        rng = np.random.default_rng([self.seed, info.id if info else 0])
        pictures, fonts = scenes.load_emoji(self.emoji), scenes.find_fonts()
        photos = camera.load_photos(self.photos) if self.photos else None
        cache = {}

        def encode(text):
            if len(cache) > 200_000:
                cache.clear()
            if text not in cache:
                cache[text] = self.tokenizer.encode(text, add_special_tokens=False)
            return cache[text]

        while True:
            drawn = [scenes.make_scene(int(rng.integers(2**40)), pictures, fonts) for _ in range(self.batch)]
            if photos is None:
                rows = [simple_row(scene, index, rng, self.per_image) for index, scene in enumerate(drawn)]
                yield pack(drawn, [rows], encode)
                continue
            drawn = [as_seen(pictures, fonts, scene, rng, photos) for scene in drawn]
            rows = [mixed_row(scene, index, rng, self.per_image) for index, scene in enumerate(drawn)]
            pairs = [pair_row(drawn, index, rng) for index in range(len(drawn) - 1)]
            yield pack(drawn, [rows, pairs], encode)


def as_seen(pictures, fonts, scene, rng, photos):
    """A third of the pictures are scenes as they are, the others as a camera sees them, more often with several kinds of objects; a
    tenth has no scene."""
    kind = rng.random()
    if kind < 0.1:
        return camera.nothing(rng, photos)
    if kind >= 0.65:
        return scene
    if scene.kind != "several" and rng.random() < 0.5:
        scene = scenes.make_scene(int(rng.integers(2**40)), pictures, fonts)
    return camera.seen(rng, scene, photos)


def presence(scene, rng, count):
    """Further questions whether something is there, half of them about what is: one bit each is little to learn from."""
    names = [name for name, _, _ in scene.objects]
    asked = []
    for index in range(count if names else 0):
        if index % 2 == 0:
            asked.append((f"Is there {scenes.article(names[rng.integers(len(names))])}?", "Yes."))
        else:
            absent = NAMES[rng.integers(len(NAMES))]
            if absent not in names:
                asked.append((f"Is there {scenes.article(absent)}?", "No."))
    return [Turn("is there", *item) for item in asked]


def simple_row(scene, index, rng, per_image):
    """Questions about one image, each asked alone: images before all of them, and dialogues of one turn."""
    found = [Turn(*item) for item in scenes.questions(scene, rng)]
    rng.shuffle(found)
    return [index], [[turn] for turn in found[:per_image] + presence(scene, rng, 4)]


def mixed_row(scene, index, rng, per_image):
    """Questions about one image alone, and a conversation."""
    alone = (
        dialogues.single(scene, rng, per_image - 2)
        + dialogues.harder(scene, rng, 4)
        + presence(scene, rng, 1)
    )
    told = [dialogues.dialogue(scene, rng, int(rng.integers(2, 5)))] if index % 2 else []
    return [index], [[turn] for turn in alone] + told


def pair_row(drawn, index, rng):
    """Conversations about two images: shown together, or the second one later."""
    images, pair = [index, index + 1], drawn[index : index + 2]
    if rng.random() < 0.6:
        return images, [[dialogues.of_pair(pair, rng)] for _ in range(5)] + [
            [dialogues.of_pair(pair, rng) for _ in range(2)]
        ]
    told = dialogues.pair_dialogue(pair, rng, 4)
    while told[0].shows == 2:
        told = dialogues.pair_dialogue(pair, rng, 4)
    told[0].shows = 0
    return images[:1], [told]


def pieces(turn, first, encode):
    """The ids of a question as the template has it: what stands before it, an image, and itself."""
    image = encode("<image>") * (CELLS * CELLS)
    if first:
        return encode(ASK + turn.question + ANSWER)
    if turn.shows:
        return encode(NEXT) + image * turn.shows + encode(ASK + turn.question + ANSWER)
    return encode(NEXT + turn.question + ANSWER)


def emphasis(turn, answer, encode):
    """How much each token of an answer counts: the first one of a yes, no or number says everything; in JSON the names do, and of two
    images the background, which is the other one's otherwise."""
    weights = [1.0] * len(answer)
    if turn.task == "json":
        before, _, after = turn.answer.partition("[")
        names = len(encode(before + "["))
        if after and answer[:names] == encode(before + "["):
            for place in range(names, names + len(encode(after.partition("]")[0]))):
                weights[place] = 3.0
    elif turn.task == "two images" and turn.answer.endswith(" background."):
        before, _, color = turn.answer.removesuffix(" background.").rpartition(" ")
        names = len(encode(before))
        if answer[:names] == encode(before):
            for place in range(names - 1, names + len(encode(" " + color))):
                weights[place] = 4.0
    elif turn.task == "which":
        weights[:2] = [3.0, 3.0]
    elif len(answer) <= 5:
        weights[0] = 4.0 if turn.task in ("none", "count") else 3.0
    return weights


def pack_rows(rows, encode):
    """Rows of `(images of the prefix, dialogues)`, of one length. A row's dialogues attend to the prefix and to themselves, at the
    positions that they have alone. Images are named in the order of their places: `shown`."""
    image = encode("<image>") * (CELLS * CELLS)
    packed, shown = [], []
    for images, told in rows:
        prefix = encode(PREFIX) + image * len(images)
        shown += images
        ids, labels, weights = list(prefix), [-100] * len(prefix), [0.0] * len(prefix)
        position, block = list(range(len(prefix))), [0] * len(prefix)
        for number, dialogue in enumerate(told, 1):
            place = len(prefix)
            for index, turn in enumerate(dialogue):
                asked, answer = pieces(turn, index == 0, encode), encode(turn.answer + END)
                # Images of later turns follow the row's own.
                shown += [images[-1] + 1] * (turn.shows if index else 0)
                ids += asked + answer
                labels += [-100] * len(asked) + answer
                weights += [0.0] * len(asked) + emphasis(turn, answer, encode)
                position += range(place, place + len(asked) + len(answer))
                place += len(asked) + len(answer)
                block += [number] * (len(asked) + len(answer))
        packed.append((ids, labels, position, block, weights))
    length = max(len(row[0]) for row in packed)

    def pad(values, fill):
        return values + [fill] * (length - len(values))

    tensors = [
        torch.tensor([pad(list(row[i]), fill) for row in packed])
        for i, fill in enumerate((0, -100, 0, -1, 0.0))
    ]
    return dict(zip(("ids", "labels", "position", "block", "weights"), tensors)) | {
        "shown": torch.tensor(shown)
    }


def pack(drawn, groups, encode):
    """Images, what is asked about them in groups of rows, and the auxiliary targets."""
    cells = np.zeros((len(drawn), CELLS, CELLS), np.int64)
    counts = np.zeros((len(drawn), CELLS, CELLS), np.int64)
    for b, scene in enumerate(drawn):
        for name, x, y in scene.objects:
            row, column = (int(np.clip(v * CELLS / SIZE, 0, CELLS - 1)) for v in (y, x))
            cells[b, row, column] = 1 + NAMES.index(name)
            counts[b, row, column] = min(counts[b, row, column] + 1, 3)
    return {
        "pixels": torch.from_numpy(np.stack([np.asarray(s.image) for s in drawn]))
        .permute(0, 3, 1, 2)
        .contiguous(),
        "texts": [pack_rows(rows, encode) for rows in groups],
        "cells": torch.from_numpy(cells),
        "counts": torch.from_numpy(counts),
        "color": torch.tensor([COLOR_NAMES.index(s.color) if s.color else -100 for s in drawn]),
        "text": torch.tensor([TEXTS.index(s.text) + 1 if s.text else 0 for s in drawn]),
    }


def attention_mask(block):
    """Additive [B,1,L,L]: causal, and a position sees block 0 (the prefix) and its own block only."""
    length = block.shape[1]
    seen = (block[:, None, :] == 0) | (block[:, None, :] == block[:, :, None])
    seen &= torch.ones(length, length, dtype=torch.bool).tril()
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None]


class Heads(torch.nn.Module):
    """The auxiliary readers of the encoder's tokens."""

    def __init__(self, width):
        super().__init__()
        self.cell = torch.nn.Linear(width, len(NAMES) + 1)
        self.count = torch.nn.Linear(width, 4)
        self.color = torch.nn.Linear(width, len(COLOR_NAMES))
        self.text = torch.nn.Linear(width, len(TEXTS) + 1)

    def forward(self, features, batch):
        tokens = features.flatten(2).transpose(1, 2).float()  # [B, cells, width]
        cells = F.cross_entropy(self.cell(tokens).flatten(0, 1), batch["cells"].flatten())
        counts = F.cross_entropy(self.count(tokens).flatten(0, 1), batch["counts"].flatten())
        color = F.cross_entropy(
            self.color(tokens).flatten(0, 1), batch["color"].repeat_interleave(tokens.shape[1])
        )
        text = F.cross_entropy(self.text(tokens.mean(1)), batch["text"])
        return cells, counts, color, text


def losses(model, image, text):
    """Of each word that is answered: the loss with its weight, the weight, and whether it is right."""
    embeds = model.model.language_model.embed_tokens(text["ids"])
    slots = text["ids"] == model.config.image_token_index
    hidden = model.model.language_model(
        inputs_embeds=embeds.masked_scatter(slots[..., None], image[text["shown"]].to(embeds.dtype)),
        attention_mask=attention_mask(text["block"]),
        position_ids=text["position"],
        use_cache=False,
    ).last_hidden_state
    told = text["labels"][:, 1:] >= 0
    labels, weights = text["labels"][:, 1:][told], text["weights"][:, 1:][told]
    logits = model.lm_head(hidden[:, :-1][told]).float()
    words = F.cross_entropy(logits, labels, reduction="none")
    # What is known already, most of all between the words of JSON, is learned from less (Lin and others, 2017).
    hard = 3 * (0.1 + 1 - torch.exp(-words.detach()))
    return words * weights * hard, weights, (logits.argmax(-1) == labels).float()


def forward(model, heads, batch, half):
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        pixels = (batch["pixels"].float() / 255).contiguous(memory_format=torch.channels_last)
        features = model.model.vision_tower.timm_model.forward_features(pixels)
        image = model.model.multi_modal_projector(features.flatten(2).permute(0, 2, 1))
        parts = [losses(model, image, text) for text in batch["texts"]]
    words, weights, right = (torch.cat(part) for part in zip(*parts))
    return words.sum() / weights.sum(), right.mean(), heads(features.float(), batch)


def save(model, tokenizer, output):
    """What `save_pretrained` of model and processor write, weights rounded to float16."""
    output = pathlib.Path(output)
    import copy

    stored = copy.deepcopy(model).to(torch.float16).eval()
    stored.generation_config = GenerationConfig(
        eos_token_id=[
            tokenizer.convert_tokens_to_ids("<|im_end|>"),
            tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        ],
        pad_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        do_sample=False,
        max_new_tokens=64,
    )
    stored.save_pretrained(output)
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[0.0, 0.0, 0.0],
        image_std=[1.0, 1.0, 1.0],
    )
    processor = LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=64,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
        image_token="<image>",
        num_additional_image_tokens=0,
    )
    processor.save_pretrained(output)
    image_processor.save_pretrained(output)


@torch.no_grad()
def answers(model, tokenizer, asked):
    """Greedy answers to prompts: (images, text with one `<image>` for each)."""
    from PIL import Image

    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    features, told = {}, []
    for start in range(0, len(asked), 64):
        part = asked[start : start + 64]
        for path in [path for images, _ in part for path in images]:
            if path not in features:
                pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB")))
                pixels = pixels.permute(2, 0, 1)[None].float() / 255
                features[path] = model.model.get_image_features(pixels).pooler_output[0]
        ids = [tokenizer.encode(text.replace("<image>", "<image>" * CELLS**2)) for _, text in part]
        length = max(map(len, ids))
        table = torch.tensor([[0] * (length - len(row)) + row for row in ids])
        mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in ids])
        embeds = model.model.language_model.embed_tokens(table)
        slots = table == model.config.image_token_index
        shown = torch.cat([features[path] for images, _ in part for path in images])
        rows = model.generate(
            inputs_embeds=embeds.masked_scatter(slots[..., None], shown),
            attention_mask=mask,
            max_new_tokens=96,
            do_sample=False,
            eos_token_id=stop,
            pad_token_id=stop,
        )
        told += [tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows.tolist()]
    return told


def exact(tasks, wanted, told):
    """The share of equal answers, the same for each task, and what was not equal."""
    right, wrong = {}, []
    for task, want, answer in zip(tasks, wanted, told):
        right.setdefault(task, []).append(want == answer)
        if want != answer:
            wrong.append((task, want, answer))
    total = [ok for oks in right.values() for ok in oks]
    return sum(total) / len(total), {task: sum(oks) / len(oks) for task, oks in sorted(right.items())}, wrong


def accuracy(model, tokenizer, folder, limit=None):
    """Exact match per task on a written evaluation set of single turns."""
    model.eval()
    folder = pathlib.Path(folder)
    entries = json.loads((folder / "questions.json").read_text())[:limit]
    asked = [([folder / e["image"]], PREFIX + "<image>" + ASK + e["question"] + ANSWER) for e in entries]
    told = answers(model, tokenizer, asked)
    return exact([e["task"] for e in entries], [e["answer"] for e in entries], told)


def further_accuracy(model, tokenizer, folder):
    """Exact match of conversations, each turn after the right answers before it, or of single turns."""
    model.eval()
    entries = json.loads((folder / "questions.json").read_text())
    asked, tasks, wanted = [], [], []
    for dialogue in entries:
        images, text = [], PREFIX
        for index, turn in enumerate(dialogue if isinstance(dialogue, list) else [dialogue]):
            new = [folder / name for name in turn.get("images", [turn.get("image")])]
            images = images + new
            text += (NEXT if index else "") + "<image>" * len(new) + (ASK if new else "")
            text += turn["question"] + ANSWER
            asked.append((images, text))
            tasks.append(turn["task"])
            wanted.append(turn["answer"])
            text += turn["answer"] + END
    return exact(tasks, wanted, answers(model, tokenizer, asked))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--emoji", required=True)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--minutes", type=float, default=1e9, help="end the schedule by the clock instead")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--questions", type=int, default=5, help="per image")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--half", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--eval", help="folder written by scenes.py, watched while training")
    parser.add_argument("--resume", help="state written by an earlier run")
    parser.add_argument("--state", default="state.pt")
    parser.add_argument(
        "--start", help="checkpoint whose weights training starts near, instead of from random ones"
    )
    parser.add_argument("--further", help="checkpoint whose weights and tokenizer are trained further")
    parser.add_argument(
        "--photos", help="photographs: also trains on camera-like pictures, pairs of images and conversations"
    )
    parser.add_argument("--share", type=float, default=0.5, help="of them in the start, the rest is random")
    parser.add_argument(
        "--keep", type=int, help="keep the checkpoint of every so many steps as OUTPUT-STEP too"
    )
    parser.add_argument("-o", "--output", required=True)
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    if arguments.further:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(arguments.further)
    else:
        tokenizer = make_tokenizer()
    model = make_model(tokenizer).to(memory_format=torch.channels_last)
    heads = Heads(512)
    if arguments.further:
        shrink_and_perturb(model, arguments.further, 1.0)
    if arguments.start:
        shrink_and_perturb(model, arguments.start, arguments.share)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens", flush=True)
    decayed = [p for p in [*model.parameters(), *heads.parameters()] if p.ndim > 1]
    others = [p for p in [*model.parameters(), *heads.parameters()] if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.02}, {"params": others, "weight_decay": 0.0}],
        lr=arguments.rate,
        betas=(0.9, 0.98),
        foreach=True,
    )
    step, spent = 0, 0.0
    if arguments.resume:
        state = torch.load(arguments.resume)
        model.load_state_dict(state["model"])
        heads.load_state_dict(state["heads"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent = state["step"], state["spent"]
    loader = iter(
        torch.utils.data.DataLoader(
            Scenes(
                arguments.emoji,
                arguments.photos,
                tokenizer,
                arguments.seed + step,
                arguments.batch,
                arguments.questions,
            ),
            batch_size=None,
            num_workers=1,
            prefetch_factor=6,
        )
    )
    started = time.time() - spent
    shown = time.time()
    running = None
    model.train()
    while True:
        progress = max(step / arguments.steps, (time.time() - started) / 60 / arguments.minutes)
        if progress >= 1:
            break
        rate = arguments.rate * min(1, (step + 1) / 150) * (0.5 + 0.5 * math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = next(loader)
        words, right, auxiliary = forward(model, heads, batch, arguments.half)
        loss = words + 1.0 * auxiliary[0] + 0.3 * auxiliary[1] + 0.3 * auxiliary[2] + 0.3 * auxiliary[3]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        values = np.array([words.item(), right.item(), *(a.item() for a in auxiliary)])
        running = values if running is None else 0.95 * running + 0.05 * values
        if step % 20 == 0:
            print(
                f"step {step} progress {progress:.3f} {(time.time() - shown) / 20:.2f} s/step rate {rate:.2e} "
                f"words {running[0]:.3f} right {running[1]:.3f} cells {running[2]:.3f} counts {running[3]:.3f} "
                f"color {running[4]:.3f} text {running[5]:.3f}",
                flush=True,
            )
            shown = time.time()
        if step % 300 == 0:
            torch.save(
                {
                    "model": model.state_dict(),
                    "heads": heads.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step,
                    "spent": time.time() - started,
                },
                arguments.state,
            )
            if arguments.eval and step % 600 == 0:
                print("exact match", accuracy(model, tokenizer, arguments.eval, 150)[:2], flush=True)
                for further in ("camera", "conversations"):
                    if (pathlib.Path(arguments.eval) / further).is_dir():
                        told = further_accuracy(model, tokenizer, pathlib.Path(arguments.eval) / further)
                        print(further, told[:2], flush=True)
                model.train()
            save(model, tokenizer, arguments.output)
            shown = time.time()
        if arguments.keep and step % arguments.keep == 0:
            save(model, tokenizer, f"{arguments.output}-{step:05}")
            model.train()
            shown = time.time()
    save(model, tokenizer, arguments.output)
    print(f"{step} steps in {(time.time() - started) / 60:.1f} minutes")
    if arguments.eval:
        stored = FastVlmForConditionalGeneration.from_pretrained(arguments.output, dtype=torch.float32)
        total, tasks, wrong = accuracy(stored, tokenizer, arguments.eval)
        print(f"exact match of the stored weights: {total:.4f}", tasks)
        for entry in wrong:
            print(" ", entry)


if __name__ == "__main__":
    main()
