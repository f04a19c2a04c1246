"""Images with labels, from whatever source to one packed form: listed, decoded, split, audited."""
