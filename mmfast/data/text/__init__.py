"""Words into token ids: templates, tokenizers, changed segments."""
