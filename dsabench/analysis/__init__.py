"""The answer that a store's runs give: scope, pairs, statistics, verdicts, wording."""
