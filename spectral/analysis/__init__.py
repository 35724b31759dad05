"""What spectra tell: tails, bulks, shapes, distances, label alignment, and closed forms to hold them against."""

from spectral.analysis.alignment import Alignment, label_alignment
from spectral.analysis.class_structure import ClassStructure, class_structure
from spectral.analysis.compare import Comparison, cohens_d, compare
from spectral.analysis.lyapunov import LogSingularValues, Lyapunov, log_singular_values, lyapunov
from spectral.analysis.marchenko_pastur import MarchenkoPastur, marchenko_pastur
from spectral.analysis.outliers import Outliers, outliers
from spectral.analysis.power_law import PowerLaw, power_law
from spectral.analysis.summary import METRICS, describe_metric, summary
