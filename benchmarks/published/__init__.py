"""Published numbers, measured: one function a row, each returns {quantity: Measured}. `expected.json` says what must come out."""

from published import initialisation, kernels, random_matrices, training

ROWS = {
    function.__name__: function
    for function in (
        random_matrices.marchenko_pastur,
        random_matrices.bbp,
        random_matrices.fuss_catalan,
        random_matrices.gaussian_exponents,
        random_matrices.linear_rnn,
        initialisation.isometry_gaussian,
        initialisation.isometry_relu_gaussian,
        initialisation.isometry_relu_orthogonal,
        initialisation.isometry_orthogonal,
        initialisation.isometry_tanh_critical,
        initialisation.karakida,
        initialisation.softmax_at_zero,
        initialisation.softmax_blocks,
        kernels.random_features,
        kernels.linear_width_ntk,
        kernels.relu_circle,
        kernels.relu_sphere,
        kernels.ntk_circle,
        training.papyan,
        training.ghorbani,
        training.cohen_gradient_descent,
        training.cohen_adam,
        training.yang,
        training.oymak,
        random_matrices.planted_tails,
        random_matrices.planted_spikes,
    )
}
