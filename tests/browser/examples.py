"""The example workflows as graphs to build in the page; `make_examples.py` writes their files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

LOGO = {"draft": [0.6172, 0.3396, 0.8172, 0.6534], "reference": [0.1875, 0.1812, 0.8125, 0.8]}
TWO = [
    {"draft": [0.3185, 0.3396, 0.4218, 0.6534], "reference": [0.0938, 0.1812, 0.4063, 0.8]},
    {"draft": [0.5185, 0.5785, 0.6363, 0.897], "reference": [0.5844, 0.1375, 0.911, 0.7813]},
]
KONTEXT = {
    "recipe": "omnirefiner", "diffusion_model": "flux1-dev-kontext_fp8_scaled.safetensors",
    "clip_l": "clip_l.safetensors", "t5xxl": "t5xxl_fp8_e4m3fn_scaled.safetensors",
    "vae": "ae.safetensors", "refiner_lora": "omnirefiner-kontext.safetensors",
}  # fmt: skip
FILES = (
    "**Files** (all in ComfyUI's models folder): `diffusion_models/flux1-dev-kontext_fp8_scaled."
    "safetensors`, `text_encoders/clip_l.safetensors`, `text_encoders/t5xxl_fp8_e4m3fn_scaled."
    "safetensors`, `vae/ae.safetensors`, and as `loras/omnirefiner-kontext.safetensors` a refiner LoRA "
    "in the index layout. Choose your own names in *Load Refiner*; without a LoRA take the recipe "
    "*kontext*. FLUX.1-Kontext-dev is under a non-commercial licence."
)
CRITIC = KONTEXT | {
    "recipe": "imagecritic", "refiner_lora": "ImageCritic-lora.safetensors",
    "detail_encoder": "ImageCritic-detail_encoder.safetensors",
}  # fmt: skip
CRITIC_FILES = (
    "**Files** (all in ComfyUI's models folder): `diffusion_models/flux1-dev-kontext_fp8_scaled."
    "safetensors`, `text_encoders/clip_l.safetensors`, `text_encoders/t5xxl_fp8_e4m3fn_scaled."
    "safetensors`, `vae/ae.safetensors`, and of ImageCritic's two files `lora.safetensors` as "
    "`loras/ImageCritic-lora.safetensors`, `detail_encoder.safetensors` as `clip_vision/ImageCritic-"
    "detail_encoder.safetensors`. Its weights are CC BY-NC 4.0, FLUX.1-Kontext-dev is under a "
    "non-commercial licence.\n\nA prompt of your own must hold the words IMG1 (reference) and IMG2 "
    "(draft). If too little is repaired draw a smaller box, or black the detail out in the draft first."
)
ANYTHING = {
    "recipe": "refineanything", "diffusion_model": "qwen_image_edit_2511_fp8mixed.safetensors",
    "text_encoder": "qwen_2.5_vl_7b_fp8_scaled.safetensors", "vae": "qwen_image_vae.safetensors",
    "refiner_lora": "Qwen-Image-Edit-2511-RefineAny.safetensors",
    "accelerator_lora": "Qwen-Image-Edit-2511-Lightning-4steps-V1.0-bf16.safetensors",
}  # fmt: skip
ANYTHING_FILES = (
    "**Files** (all in ComfyUI's models folder): `diffusion_models/qwen_image_edit_2511_fp8mixed."
    "safetensors`, `text_encoders/qwen_2.5_vl_7b_fp8_scaled.safetensors`, `vae/qwen_image_vae."
    "safetensors`, `loras/Qwen-Image-Edit-2511-RefineAny.safetensors` and, for 4 steps without CFG, "
    "`loras/Qwen-Image-Edit-2511-Lightning-4steps-V1.0-bf16.safetensors`. With *none* as "
    "*accelerator_lora* it takes 28 steps at CFG 4.\n\nSay in *prompt* what to repair, beginning with "
    "*refine*. It works without a reference too: remove the links to *reference* and *reference_mask*."
)

KLEIN = {
    "recipe": "flux2-klein", "diffusion_model": "flux-2-klein-4b.safetensors",
    "text_encoder": "qwen_3_4b.safetensors", "vae": "flux2-vae.safetensors",
}  # fmt: skip
KLEIN_FILES = (
    "**Files** (all in ComfyUI's models folder): `diffusion_models/flux-2-klein-4b.safetensors` or its "
    "fp8 file, `text_encoders/qwen_3_4b.safetensors` and `vae/flux2-vae.safetensors`, those of "
    "ComfyUI's own FLUX.2 [klein] templates. Klein 4B is under Apache-2.0. It takes several pictures "
    "by training, but was not trained for repairs: say in *prompt* what to do if too little happens."
)
STACK_FILES = (
    "**Files** (all in ComfyUI's models folder): `diffusion_models/flux1-dev-kontext_fp8_scaled."
    "safetensors`, `text_encoders/clip_l.safetensors`, `text_encoders/t5xxl_fp8_e4m3fn_scaled."
    "safetensors`, `vae/ae.safetensors`.\n\n**GGUF**: with ComfyUI-GGUF installed put *Unet Loader "
    "(GGUF)* in place of *Load Diffusion Model*; if T5 is GGUF too, *DualCLIPLoader (GGUF)*. **LoRAs**, "
    "torch.compile and the like go between that loader and *Refiner from Model*, whose *recipe* says "
    "what it all is: *kontext* is Kontext without a refiner LoRA. FLUX.1-Kontext-dev is under a "
    "non-commercial licence."
)


@dataclass(frozen=True)
class Example:
    """`nodes` and `links` as `graphs.build` takes them; `runs` without a download."""

    name: str
    note: str
    nodes: list[dict[str, Any]]
    links: list[tuple[int, int, int, str]]
    runs: bool = True


def node(kind: str, x: int, y: int, width: int, height: int, **values: Any) -> dict[str, Any]:
    return {"type": kind, "pos": [x, y], "size": [width, height], "values": values}


def load(x: int = 20, y: int = 60, **values: Any) -> dict[str, Any]:
    """As high as its recipe's files make it."""
    return node("OmniRefiner_LoadRefiner", x, y, 360, 110, **values)


def case(name: str, x: int = 20, y: int = 360) -> dict[str, Any]:
    return node("OmniRefiner_ExampleCase", x, y, 360, 150, case=name)


def refine(x: int = 440, y: int = 60, **values: Any) -> dict[str, Any]:
    fixed = {"control_after_generate": "fixed"}
    return node("OmniRefiner_ReferenceRefine", x, y, 560, 760, **(fixed | values))


def save(x: int = 1060, y: int = 60, prefix: str = "refined") -> dict[str, Any]:
    return node("SaveImage", x, y, 480, 420, filename_prefix=f"omnirefiner/{prefix}")


# Load Refiner 0, Example Case 1, Reference Refine 2, Save Image 3.
PLAIN = [(0, 0, 2, "refiner"), (1, 0, 2, "draft"), (1, 1, 2, "reference"), (2, 0, 3, "images")]
MASKED = [*PLAIN, (1, 2, 2, "mask"), (1, 3, 2, "reference_mask")]
# The same with a Mask Builder 4 on the way of the mask.
LETTERING = [
    *PLAIN, (1, 0, 4, "image"), (1, 2, 4, "mask"), (4, 0, 2, "mask"), (1, 3, 2, "reference_mask"),
]  # fmt: skip


def lettering(loader: dict[str, Any]) -> list[dict[str, Any]]:
    """The nodes for LETTERING."""
    builder = node("OmniRefiner_MaskBuilder", 440, 60, 400, 560, grow=1)
    below = 500 if loader["values"] else 360
    return [loader, case("word", y=below), refine(x=900), save(x=1520), builder]


OWN = (
    "\n\nFor your own pictures put *Load Image* nodes in place of *Example Case* and drag a box over the "
    "detail in both pictures, in the tab *Regions*; rather too small than too large."
)

EXAMPLES = [
    Example(
        "Repair a logo (nano, nothing to download)",
        "## Repair a logo\nPress **Run**. The draft carries the wrong badge, the reference shows the "
        "right one. Move the slider in *Reference Refine* to compare; outside the region every pixel "
        "is exactly the draft's." + OWN,
        [load(), case("logo"), refine(boxes=[LOGO]), save()],
        MASKED,
    ),
    Example(
        "Repair lettering with a painted mask (nano)",
        "## Repair lettering with a painted mask\nPress **Run**. The sign is misspelled; the reference "
        "spells it right. *Mask Builder* takes the painted mask and grows it by a pixel.\n\nFor your "
        "own pictures put *Load Image* nodes in place of *Example Case*, paint each mask with *Open in "
        "MaskEditor* and connect the outputs MASK. Outline the same surface in both pictures, the "
        "whole sign rather than single letters.",
        lettering(load()),
        LETTERING,
    ),
    Example(
        "Two regions with two references (nano)",
        "## Two regions with two references\nPress **Run**. Box 1 of the draft takes its detail from "
        "box 1 of the reference, box 2 from box 2; each is a repair of its own. The masks narrow the "
        "boxes down to the outlines; without masks whole boxes are repaired." + OWN,
        [
            load(),
            case("logo and pattern"),
            refine(boxes=TWO),
            save(),
        ],
        MASKED,
    ),
    Example(
        "After a generator (nano)",
        "## After a generator\nConnect your generator's *VAE Decode* where *Example Case* stands for it "
        "now, run once, drag boxes in the tab *Regions* of *Reference Refine*, run again: the generator "
        "is not run a second time while its seed is fixed. *Compare* shows both pictures pixel on "
        "pixel.",
        [
            load(),
            case("pattern"),
            refine(),
            save(y=620),
            node("OmniRefiner_Compare", 1060, 60, 560, 480),
        ],
        [*MASKED, (1, 0, 4, "a"), (2, 0, 4, "b"), (2, 2, 4, "mask")],
    ),
    Example(
        "Best of 8 (nano)",
        "## Best of 8\nPress **Run**. *candidates* 8 begins eight repairs; after every quarter of the "
        "steps the worse half is dropped, and the one whose detail is nearest to the reference is "
        "returned. *Report* lists every candidate with its seed and score. The score needs no weights; "
        "connect *Load Scorer* to *scorer* to choose by DreamSim." + OWN,
        [load(), case("logo"), refine(boxes=[LOGO], candidates=8), save(prefix="best")],
        MASKED,
    ),
    Example(
        "Score repairs with a heatmap (no weights)",
        "## Score repairs\nPress **Run**. *DreamSim Score* compares a whole batch with the true picture, "
        "here the draft and its repair: 0 is the same. *Compare* lays the heatmap over them; turn to the "
        "second picture with its arrows. For DreamSim itself choose its file in *metric*.",
        [
            load(),
            case("pattern"),
            refine(),
            save(y=640),
            node("BatchImagesNode", 1060, 60, 220, 80),
            node("OmniRefiner_DreamSimScore", 1060, 200, 380, 380),
            node("OmniRefiner_Compare", 1560, 60, 560, 520),
            node("PreviewAny", 1560, 640, 560, 160),
        ],
        [
            *MASKED,
            (1, 0, 4, "images.image0"),
            (2, 0, 4, "images.image1"),
            (4, 0, 5, "image_a"),
            (1, 4, 5, "image_b"),
            (4, 0, 6, "a"),
            (1, 4, 6, "b"),
            (5, 2, 6, "overlay"),
            (5, 3, 7, "source"),
        ],
    ),
    Example(
        "Score a folder (no weights)",
        "## Score a folder\n*Load Folder* gives a folder's pictures one by one, here those of ComfyUI's "
        "*input*: type the name of a folder inside it, or a full path, then press **Run**. Each is "
        "compared with the true one: 0 is the same. The scores begin with the file's name; *Compare* "
        "shows each picture with its heatmap, in the same order. *Example Case* stands for the true "
        "picture and for the mask of what counts: take *Load Image* for yours, or leave the mask away "
        "to compare whole pictures.",
        [
            node("OmniRefiner_LoadFolder", 20, 60, 360, 110),
            case("logo", y=260),
            node("OmniRefiner_DreamSimScore", 440, 60, 380, 400, sizes="stretch"),
            node("OmniRefiner_Compare", 880, 60, 560, 520),
            node("PreviewAny", 440, 520, 380, 200),
        ],
        [
            (1, 4, 2, "image_a"),
            (0, 0, 2, "image_b"),
            (1, 2, 2, "mask"),
            (0, 1, 2, "name"),
            (0, 0, 3, "a"),
            (1, 4, 3, "b"),
            (2, 2, 3, "overlay"),
            (2, 3, 4, "source"),
        ],
    ),
    Example(
        "Repair a logo (Kontext)",
        "## Repair a logo with FLUX.1-Kontext\n" + FILES + OWN,
        [load(**KONTEXT), case("logo", y=500), refine(boxes=[LOGO]), save()],
        MASKED,
        runs=False,
    ),
    Example(
        "Repair lettering with a painted mask (Kontext)",
        "## Repair lettering with FLUX.1-Kontext\n" + FILES + "\n\nWrite what the text says into "
        "*prompt* if the repair should follow it; empty takes the recipe's own sentence.",
        lettering(load(**KONTEXT)),
        LETTERING,
        runs=False,
    ),
    Example(
        "Repair a logo (ImageCritic)",
        "## Repair a logo with ImageCritic\n" + CRITIC_FILES + OWN,
        [load(**CRITIC), case("logo", y=500), refine(boxes=[LOGO]), save()],
        MASKED,
        runs=False,
    ),
    Example(
        "Repair a logo (Kontext GGUF, LoRA stacks)",
        "## Repair a logo with loaders of your own\n" + STACK_FILES + OWN,
        [
            node("UNETLoader", 20, 60, 360, 90, unet_name=KONTEXT["diffusion_model"]),
            case("logo", y=490),
            refine(x=840, boxes=[LOGO]),
            save(x=1460),
            node(
                "DualCLIPLoader",
                20,
                190,
                360,
                130,
                clip_name1=KONTEXT["clip_l"],
                clip_name2=KONTEXT["t5xxl"],
                type="flux",
            ),
            node("VAELoader", 20, 375, 360, 60, vae_name=KONTEXT["vae"]),
            node("OmniRefiner_RefinerFromModel", 440, 60, 340, 220, recipe="kontext"),
        ],
        [
            (0, 0, 6, "model"),
            (5, 0, 6, "vae"),
            (4, 0, 6, "clip"),
            (6, 0, 2, "refiner"),
            *MASKED[1:],
        ],
        runs=False,
    ),
    Example(
        "Repair a logo (FLUX.2 klein)",
        "## Repair a logo with FLUX.2 [klein]\n" + KLEIN_FILES + OWN,
        [load(**KLEIN), case("logo", y=500), refine(boxes=[LOGO]), save()],
        MASKED,
        runs=False,
    ),
    Example(
        "Repair lettering (RefineAnything)",
        "## Repair lettering with RefineAnything\n" + ANYTHING_FILES + OWN,
        [
            load(**ANYTHING),
            case("word", y=500),
            refine(prompt="Refine the lettering of the sign in the masked region."),
            save(),
        ],
        MASKED,
        runs=False,
    ),
]
