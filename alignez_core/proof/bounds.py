"""The bounds of the choice and the gate. Without torch, because pages about a report need them too."""

from __future__ import annotations

#: Nats per token above the prompted answers, on queries asked alone. Elsewhere (late in a conversation, say) the
#: prompted model often does not show the persona itself, and its likelihood says nothing about answers that do.
MAX_COHERENCE = 0.4
#: Repetition above the larger of the bare and the prompted answers'.
MAX_REPETITION = 0.06
