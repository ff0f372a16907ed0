"""The recipe of the tiny CLIP model in `tiny-clip/`: printed characters and simple shapes with captions."""
