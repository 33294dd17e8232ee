"""Sample policies and measure their responses, for stage evaluate."""
