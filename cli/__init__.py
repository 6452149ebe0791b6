"""The command line of `client.py`: asking, chatting, transcribing, and looking whether a server is well.

Speaks to any OpenAI server that takes audio, and imports nothing else of this repository, so that it can be copied.
Answers go to stdout, everything else to stderr.
"""
