"""Problems, models, training and the experiments of the funnel question."""
