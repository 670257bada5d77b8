"""The example workflows as graphs to build in the page; `make_examples.py` writes their files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.browser.model_files import file_list

LOGO = {"draft": [0.25, 0.2155, 0.6734, 0.8407], "reference": [0.135, 0.1175, 0.8925, 0.9025]}
TWO = [
    {"draft": [0.129, 0.2155, 0.3476, 0.8407], "reference": [0.075, 0.1175, 0.4958, 0.9025]},
    {"draft": [0.5185, 0.5785, 0.6363, 0.897], "reference": [0.6306, 0.11, 0.9208, 0.625]},
]
KONTEXT = {
    "recipe": "omnirefiner",
    "diffusion_model": "flux1-dev-kontext_fp8_scaled.safetensors",
    "clip_l": "clip_l.safetensors",
    "t5xxl": "t5xxl_fp8_e4m3fn_scaled.safetensors",
    "vae": "ae.safetensors",
    "refiner_lora": "omnirefiner-kontext.safetensors",
}
KONTEXT_LICENCE = "FLUX.1 Kontext [dev] has a non-commercial license."
KONTEXT_FILES = (
    f"{file_list(KONTEXT)} **The refiner LoRA has not been published**: train one with *Train Refiner "
    "(SFT)* or on the command line. To run the workflow without it, set *recipe* to *kontext* and "
    f"*refiner_lora* to *none*. {KONTEXT_LICENCE}"
)
CRITIC = KONTEXT | {
    "recipe": "imagecritic",
    "refiner_lora": "ImageCritic-lora.safetensors",
    "detail_encoder": "ImageCritic-detail_encoder.safetensors",
}
CRITIC_FILES = (
    f"{file_list(CRITIC)} ImageCritic's files are called *lora* and *detail_encoder*: save them under "
    f"the names above. Their license is CC BY-NC 4.0. {KONTEXT_LICENCE}\n\n"
    "Your own prompt must contain the words IMG1 (the reference) and IMG2 (the draft). If the repair "
    "changes too little, draw a smaller box, or paint the detail in the draft black first."
)
ANYTHING = {
    "recipe": "refineanything",
    "diffusion_model": "qwen_image_edit_2511_fp8mixed.safetensors",
    "text_encoder": "qwen_2.5_vl_7b_fp8_scaled.safetensors",
    "vae": "qwen_image_vae.safetensors",
    "refiner_lora": "Qwen-Image-Edit-2511-RefineAny.safetensors",
    "accelerator_lora": "Qwen-Image-Edit-2511-Lightning-4steps-V1.0-bf16.safetensors",
}
ANYTHING_FILES = (
    f"{file_list(ANYTHING)} The Lightning LoRA is optional: it samples with 4 steps and without CFG. "
    "With *accelerator_lora* set to *none*, 28 steps and CFG 4 are used.\n\nDescribe the repair in "
    "*prompt*, starting with the word *refine*. The recipe also works without a reference: remove the "
    "links to *reference* and *reference_mask*."
)

KLEIN = {
    "recipe": "flux2-klein",
    "diffusion_model": "flux-2-klein-4b.safetensors",
    "text_encoder": "qwen_3_4b.safetensors",
    "vae": "flux2-vae.safetensors",
}
KLEIN_FILES = (
    f"{file_list(KLEIN)} The license of FLUX.2 [klein] 4B is Apache-2.0.\n\nThe model was trained for "
    "several reference images, but not for repairs. If it changes too little, describe the repair in "
    "*prompt*."
)
SAM = {"ckpt_name": "sam3.1_multiplex_fp16.safetensors"}
SAM_FILES = (
    f"{file_list(SAM)}\n\nWrite what the detail is called into the text field, in English and in a few "
    "words. *SAM3 Detect* finds it in the draft and in the reference, and *Mask Builder* grows the mask "
    "in the draft by two pixels. If it finds too much or too little, change its *threshold*. With nano "
    "the reference may also do without a mask: the detail is then searched for in all of it.\n\n"
    "Masks of other packs, for example GroundingDINO, CLIPSeg or BiRefNet, are connected in the same way. "
    "Detections of ComfyUI Impact Pack go to *segs* of *Mask Builder*."
)
UNET = {"unet_name": KONTEXT["diffusion_model"]}
CLIP = {"clip_name1": KONTEXT["clip_l"], "clip_name2": KONTEXT["t5xxl"], "type": "flux"}
VAE = {"vae_name": KONTEXT["vae"]}
STACK_FILES = (
    f"{file_list(UNET, CLIP, VAE)} {KONTEXT_LICENCE}\n\n**GGUF**: install the pack ComfyUI-GGUF and "
    "replace *Load Diffusion Model* with *Unet Loader (GGUF)*. If T5 is a GGUF file as well, use "
    "*DualCLIPLoader (GGUF)*. **LoRAs** and torch.compile go between that loader and *Refiner from "
    "Model*. Its *recipe* says what the model was trained for: *kontext* is Kontext without a refiner "
    "LoRA."
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
    "\n\nTo use your own images, replace *Example Case (OmniRefiner)* with two *Load Image* nodes and "
    "draw a box around the detail in both images in the tab *Regions*. Keep the boxes tight."
)

EXAMPLES = [
    Example(
        "Repair a logo (nano, nothing to download)",
        "## Repair a logo\nPress **Run**. The emblem on the can is melted in the draft; the reference "
        "is another photo of the can. Move the slider in *Reference Refine* to compare before and after. "
        "Every pixel outside the region keeps its exact value." + OWN,
        [load(), case("logo"), refine(boxes=[LOGO]), save()],
        MASKED,
    ),
    Example(
        "Repair lettering with a painted mask (nano)",
        "## Repair lettering with a painted mask\nPress **Run**. The name on the can is melted in the "
        "draft; the reference is another photo of the can. *Mask Builder* takes the painted mask and grows "
        "it by one pixel."
        "\n\nTo use your own images, replace *Example Case (OmniRefiner)* with two *Load Image* nodes, "
        "paint a mask in each with *Open in Mask Editor* and connect their MASK outputs. Mark the same "
        "surface in both images: the whole name rather than single letters.",
        lettering(load()),
        LETTERING,
    ),
    Example(
        "Two regions with two references (nano)",
        "## Two regions with two references\nPress **Run**. Box 1 of the draft is repaired from box 1 of "
        "the reference, and box 2 from box 2. Each pair is a repair of its own. The masks limit the "
        "boxes to the outlines of the details; without masks the whole boxes are repaired." + OWN,
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
        "## After a generator\nReplace *Example Case (OmniRefiner)* with the *VAE Decode* of your "
        "generator. Press **Run** once, draw boxes in the tab *Regions* of *Reference Refine*, and press "
        "**Run** again. As long as its seed is fixed, the generator does not run a second time. *Compare "
        "(OmniRefiner)* shows both images pixel by pixel.",
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
        "## Best of 8\nPress **Run**. With *candidates* set to 8, eight repairs are started. After every "
        "quarter of the steps the worse half is dropped, and the one whose detail is closest to the "
        "reference is returned. The tab *Report* lists the seed and score of every candidate. The score "
        "needs no weights; connect *Load Scorer* to *scorer* to choose by DreamSim." + OWN,
        [load(), case("logo"), refine(boxes=[LOGO], candidates=8), save(prefix="best")],
        MASKED,
    ),
    Example(
        "Score repairs with a heatmap (no weights)",
        "## Score repairs\nPress **Run**. *DreamSim Score* compares a batch of images, here the draft and "
        "its repair, with the correct image. 0 means identical. *Compare (OmniRefiner)* shows the heatmap "
        "over the images; its arrow buttons switch to the second image. To use DreamSim, choose its file "
        "in *metric*.",
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
        "## Score a folder\nEnter the name of a folder inside ComfyUI's *input* folder, or a full path, in "
        "*Load Folder (OmniRefiner)*, then press **Run**. Every image of the folder is compared with the "
        "correct image. 0 means identical. Each score starts with the file name, and *Compare "
        "(OmniRefiner)* shows the images with their heatmaps in the same order.\n\n*Example Case "
        "(OmniRefiner)* provides the correct image and the mask of the area that counts. Replace it with "
        "*Load Image* to use your own, or remove the mask to compare the whole images.",
        [
            node("OmniRefiner_LoadFolder", 20, 60, 360, 110, folder="."),
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
        "## Repair a logo with FLUX.1 Kontext\n" + KONTEXT_FILES + OWN,
        [load(**KONTEXT), case("logo", y=500), refine(boxes=[LOGO]), save()],
        MASKED,
        runs=False,
    ),
    Example(
        "Repair lettering with a painted mask (Kontext)",
        "## Repair lettering with FLUX.1 Kontext\n"
        + KONTEXT_FILES
        + "\n\nTo make the model follow the "
        "wording, write what the text says into *prompt*. If it is empty, the recipe's own prompt is used.",
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
        "## Repair a logo with separate loaders\n" + STACK_FILES + OWN,
        [
            node("UNETLoader", 20, 60, 360, 90, **UNET),
            case("logo", y=490),
            refine(x=840, boxes=[LOGO]),
            save(x=1460),
            node(
                "DualCLIPLoader",
                20,
                190,
                360,
                130,
                **CLIP,
            ),
            node("VAELoader", 20, 375, 360, 60, **VAE),
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
        "Find the detail by its name (SAM3)",
        "## Find the detail by its name\n" + SAM_FILES,
        [
            load(),
            case("logo"),
            refine(x=1280),
            save(x=1900),
            node("CheckpointLoaderSimple", 20, 570, 360, 110, **SAM),
            node("CLIPTextEncode", 20, 740, 360, 120, text="whale"),
            node("SAM3_Detect", 440, 60, 320, 230),
            node("SAM3_Detect", 440, 360, 320, 230),
            node("OmniRefiner_MaskBuilder", 820, 60, 400, 560, grow=2),
        ],
        [
            *PLAIN,
            (4, 1, 5, "clip"),
            *((4, 0, detector, "model") for detector in (6, 7)),
            *((5, 0, detector, "conditioning") for detector in (6, 7)),
            (1, 0, 6, "image"),
            (1, 1, 7, "image"),
            (1, 0, 8, "image"),
            (6, 0, 8, "mask"),
            (8, 0, 2, "mask"),
            (7, 0, 2, "reference_mask"),
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
            refine(prompt="Refine the lettering on the can in the masked region."),
            save(),
        ],
        MASKED,
        runs=False,
    ),
]
