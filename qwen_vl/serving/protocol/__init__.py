"""The OpenAI chat protocol: requests checked, answers written. Pure values, no web framework."""
