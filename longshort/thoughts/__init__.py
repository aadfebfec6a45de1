"""From long reasoning traces to two fine-tuned models: Long⊗Short (arXiv 2505.11827, section 3), TL;DR (arXiv 2506.02678)."""
