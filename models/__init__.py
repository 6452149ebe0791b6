"""Models: tensors, and nothing of requests or HTTP.

Importing this package makes torchaudio importable beside a CPU build of torch; it must come before transformers' own
import of torchaudio, so it stands here and not in the model that happens to be first.
"""

from models import torchaudio_guard

torchaudio_guard.install()
