import pytest

from pusa.clip import count_latent_frames, split_clips


@pytest.mark.parametrize(("frames", "latent"), [(1, 1), (5, 2), (33, 9), (81, 21)])
def test_latent_frames(frames, latent):
    assert count_latent_frames(frames) == latent


@pytest.mark.parametrize(
    ("frames", "nearest"), [(80, "77 and 81"), (82, "81 and 85"), (2, "1 and 5"), (0, "1 and 5")]
)
def test_frames_not_of_the_form_4k_plus_1(frames, nearest):
    with pytest.raises(ValueError, match=f"found {frames}; {nearest} are the nearest"):
        count_latent_frames(frames)


def test_no_clip_with_the_caption_of_a_held_out_one_is_trained_on():
    captions = ["a", "b", "c", "b", "d", "a"]
    assert split_clips(captions, 2) == ([1, 2, 3], [4, 5])
    assert split_clips(captions, 0) == ([0, 1, 2, 3, 4, 5], [])
    assert split_clips(["a", "b", "a"], 2) == ([], [1, 2])
    assert split_clips(["a"], 3) == ([], [0])
