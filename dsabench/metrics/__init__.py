"""The list of metrics, from which everything that shows metrics is made."""

from dsabench.metrics.choices import beside as beside
from dsabench.metrics.choices import columns as columns
from dsabench.metrics.choices import compared as compared
from dsabench.metrics.choices import drawn as drawn
from dsabench.metrics.choices import means as means
from dsabench.metrics.choices import partners as partners
from dsabench.metrics.choices import rows_of as rows_of
from dsabench.metrics.choices import spreads as spreads
from dsabench.metrics.entries import GAP as GAP
from dsabench.metrics.entries import METRICS as METRICS
from dsabench.metrics.epochs import epochs as epochs
from dsabench.metrics.epochs import recorded_epochs as recorded_epochs
from dsabench.metrics.metric import Metric as Metric
from dsabench.metrics.metric import plural as plural
