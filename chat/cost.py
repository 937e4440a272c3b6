"""What an answer cost, in one line for people."""

from dataclasses import dataclass

from chat.session import RoundStatistics


@dataclass(frozen=True)
class Cost:
    """What an answer cost, and where the dialogue stands."""

    statistics: RoundStatistics
    images: int  # of the dialogue so far
    most_tokens: int  # that it may grow to

    @property
    def tokens_per_second(self) -> float:
        """After the first token, which waits for the prompt."""
        seconds = self.statistics.seconds - self.statistics.seconds_to_first_token
        return (self.statistics.generated_tokens - 1) / seconds if seconds > 0 else 0.0

    def __str__(self) -> str:
        cost = self.statistics
        tokens = cost.prompt_tokens + cost.generated_tokens
        parts = [
            f"{tokens:,} of {self.most_tokens:,} tokens ({cost.computed_tokens:,} computed)",
            f"{self.images} image{'' if self.images == 1 else 's'} ({cost.encoded_images} new)",
            f"first token {cost.seconds_to_first_token:.2f} s",
        ]
        if cost.generated_tokens > 1:
            parts.append(f"{self.tokens_per_second:.1f} tokens/s")
        if cost.end == "length":
            parts.append("cut at the length limit")
        return " · ".join(parts)
