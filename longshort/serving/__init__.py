"""One trained pair answering questions: from Python, in a terminal, over HTTP."""
