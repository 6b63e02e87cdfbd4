"""The embedded model: a Wan-style text-to-video model small enough to train on a laptop.

``world`` renders the clips it knows, ``dataset`` writes them in the formats of the real data,
``text``, ``vae`` and ``base`` make its parts. The trained parts lie in ``model/``.
"""
