"""Models: tensors, and nothing of requests or HTTP.

Importing this package makes torchaudio importable beside a CPU build of torch; it must come before transformers' own
import of torchaudio, so it stands here and not in the model that happens to be first.
"""

import logging

from models import torchaudio_guard

torchaudio_guard.install()

# transformers imports torchao wherever it is installed, and torchao complains of kernels for GPUs that are not there.
for _noisy in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_noisy).setLevel(logging.ERROR)
