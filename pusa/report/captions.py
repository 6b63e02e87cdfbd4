"""Sentences under tables and figures: how large a run is, and how what is shown was made."""

from pusa.layout import Layout


def describe_setting(layout: Layout) -> str:
    """How the main setting's videos were made."""
    config, clip = layout.config, layout.config.clip
    return (
        f"This run: {layout.main.label}, guidance {config.sample.guidance_scale:g}; {clip.frames} "
        f"frames of {clip.width}x{clip.height}; {config.model.path}."
    )


def describe_compared(layout: Layout) -> str:
    """How the videos of all compared models were made."""
    if not layout.has_baseline:
        return describe_setting(layout)
    label, scale = layout.compared[1].label, layout.config.baseline.guidance_scale
    told = f"{describe_setting(layout)} {label}, guidance {scale:g}."
    return f"{told}{_describe_baseline(layout)}"


def describe_analysed(layout: Layout) -> str:
    """How the models of Figures 4 and 5 were made, which all run as the main setting does."""
    return f"{describe_setting(layout)}{_describe_baseline(layout)}"


def describe_tasks(layout: Layout) -> str:
    """How the videos of Figures 7 to 12 were made, and where their clips are from."""
    dataset = layout.config.tasks.dataset
    source = "were held out from training" if dataset is None else f"are of {dataset}"
    rows = (
        "Above is the true clip, with the given frames as they were given, and below it the video: "
        "in it a clean given frame is what the autoencoder gives back, a noisy one what the model "
        "makes of it."
    )
    return f"{rows} {describe_setting(layout)} The clips {source}."


def describe_scale(layout: Layout, study: str) -> str:
    """How large a study is, for the captions of tables."""
    config, clip = layout.config, layout.config.clip
    used = dict.fromkeys(
        sum(layout.sampled(study, name).values()) for name in layout.settings[study]
    )
    prompts = " or ".join(f"{n:,} prompts" for n in sorted(used, reverse=True))
    made, seeds = "", ""
    if study == "effects":
        made = (
            f"Made by snakemake effects over {len(config.effects.seeds)} training seeds, which the "
            "intervals take as given: seed sd is the standard deviation of a difference over them. "
        )
    elif config.is_trained:
        seeds = " Of one training seed; snakemake effects compares several."
    baseline = _describe_baseline(layout) if study == "tables" else ""
    return (
        f"{made}This run: {config.model.path}, {clip.frames} frames of {clip.width}x{clip.height}, "
        f"{prompts} with {config.sample.samples} sample(s) each.{seeds}{baseline}"
    )


def _describe_baseline(layout: Layout) -> str:
    """What Wan-I2V is in this run, should it be another model than the paper's."""
    if not layout.trains_baseline:
        return ""
    return " Wan-I2V of this run is a tiny model in its manner, trained from the same base."
