"""Exact answers for the models, by numpy and scipy in float64. Nothing here calls vijax or JAX.

Each takes another road than the library: N x N covariances for its D x D precisions, gains for its
Cholesky solves, scipy's densities for its own, eigenvalues for its gradients.
"""

import itertools

import numpy as np
from scipy import integrate, optimize, special, stats


def log_normal(x, loc, covariance):
    """Log density of Normal(loc, covariance) at x [P]."""
    return float(stats.multivariate_normal(np.atleast_1d(loc), covariance).logpdf(x))


def linear_gaussian(x, matrix, offset, noise, prior_loc, prior_covariance):
    """z ~ Normal(prior_loc [D], prior_covariance), x | z ~ Normal(matrix z + offset, noise [P, P]).

    Returns log p(x), and the posterior's mean [D] and covariance [D, D], by the gain (Kalman) form.
    """
    marginal = matrix @ prior_covariance @ matrix.T + noise
    mean = matrix @ prior_loc + offset
    gain = np.linalg.solve(marginal, matrix @ prior_covariance).T
    covariance = prior_covariance - gain @ matrix @ prior_covariance
    return log_normal(x, mean, marginal), prior_loc + gain @ (x - mean), covariance


def hierarchical_normal(x, prior_scale, scale, noise_scale):
    """The joint (w, z_1..z_N) of the one-dimensional random-effects model as `linear_gaussian`'s
    answer, x [N].
    """
    num_data = len(x)
    loads = np.hstack([np.ones((num_data, 1)), np.eye(num_data)])  # z = w + scale e
    prior = np.diag([prior_scale**2] + [scale**2] * num_data)
    change = np.vstack([np.eye(1, num_data + 1), loads])  # (w, e) -> (w, z)
    joint = change @ prior @ change.T
    pick = np.hstack([np.zeros((num_data, 1)), np.eye(num_data)])
    return linear_gaussian(
        x,
        pick,
        np.zeros(num_data),
        noise_scale**2 * np.eye(num_data),
        np.zeros(num_data + 1),
        joint,
    )


def kl_normal(loc, covariance, loc2, covariance2):
    """KL(Normal(loc, covariance) || Normal(loc2, covariance2)) in nats."""
    inverse = np.linalg.inv(covariance2)
    shift = loc - loc2
    log_ratio = np.linalg.slogdet(covariance2)[1] - np.linalg.slogdet(covariance)[1]
    return 0.5 * (np.trace(inverse @ covariance) + shift @ inverse @ shift - len(loc) + log_ratio)


def mean_field_variance(covariance):
    """[D] variances of the factorised normal nearest to Normal(., covariance) in KL(q || p)."""
    return 1.0 / np.diag(np.linalg.inv(covariance))


def gauss_hermite(dim, order):
    """Nodes [M, dim] and weights [M] of Normal(0, I): exact for polynomials of degree 2 order - 1
    in each variable.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(order)
    weights = weights / weights.sum()
    grid = np.array(list(itertools.product(nodes, repeat=dim)))
    return grid, np.array([np.prod(w) for w in itertools.product(weights, repeat=dim)])


def bound_over_tuples(values, probs, num_samples, bound):
    """E[bound(values of K independent draws)] over all S^K tuples; `bound` maps [S^K, K] ->
    [S^K].
    """
    tuples = np.array(list(itertools.product(range(len(values)), repeat=num_samples)))
    return float(np.prod(probs[tuples], axis=1) @ bound(values[tuples]))


def mixture_log_joint(x, logits, loc, log_scale):
    """[N, C] log p(x_i, z_i = c) of a mixture of normals with diagonal covariances, x [N, P]."""
    parts = stats.norm.logpdf(x[:, None, :], loc[None], np.exp(log_scale)[None]).sum(axis=2)
    return parts + np.log(special.softmax(logits))[None]


def mixture_log_evidence(x, theta):
    """[N] log p(x_i)."""
    return special.logsumexp(mixture_log_joint(x, **theta), axis=1)


def mixture_em_step(x, theta):
    """The maximum of the expected log joint under the exact responsibilities. Bishop 2006, eq.
    9.24-9.26.
    """
    responsibility = special.softmax(mixture_log_joint(x, **theta), axis=1)
    count = responsibility.sum(axis=0)
    loc = responsibility.T @ x / count[:, None]
    square = (
        np.einsum("nc,ncp->cp", responsibility, (x[:, None, :] - loc[None]) ** 2) / count[:, None]
    )
    return {"logits": np.log(count / len(x)), "loc": loc, "log_scale": 0.5 * np.log(square)}


def factor_mixture_log_evidence(x, logits, weights, bias, log_noise):
    """Log p(x) of a mixture of factor analysers, x [P], by the marginal covariance of each
    component.
    """
    noise = np.exp(2.0 * log_noise) * np.eye(len(x))
    parts = [log_normal(x, b, w @ w.T + noise) for w, b in zip(weights, bias, strict=True)]
    return float(special.logsumexp(np.log(special.softmax(logits)) + np.array(parts)))


def pca_maximum(x, latent_dim):
    """The maximum of probabilistic PCA's evidence, x [N, P]. Tipping and Bishop 1999, eq. 7-8.

    Returns the mean [P], the covariance W W^T + s^2 I [P, P], s^2, and the largest log evidence of
    all data.
    """
    mean = x.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    noise = values[:-latent_dim].mean()
    kept = vectors[:, -latent_dim:]
    covariance = kept @ np.diag(values[-latent_dim:] - noise) @ kept.T + noise * np.eye(x.shape[1])
    return (
        mean,
        covariance,
        noise,
        float(stats.multivariate_normal(mean, covariance).logpdf(x).sum()),
    )


def logistic_mean_field_bound(features, label, prior_scale, loc, scale):
    """ELBO of Bayesian logistic regression at q = Normal(loc, diag(scale)^2), by one-dimensional
    quadrature per datum.
    """
    nodes, weights = gauss_hermite(1, 40)
    spread = np.sqrt(features**2 @ scale**2)
    logits = (features @ loc)[:, None] + spread[:, None] * nodes[:, 0][None]
    likelihood = (label[:, None] * logits - np.logaddexp(0.0, logits)) @ weights
    return likelihood.sum() - kl_normal(
        loc, np.diag(scale**2), np.zeros(len(loc)), prior_scale**2 * np.eye(len(loc))
    )


def logistic_mean_field_maximum(features, label, prior_scale):
    """(loc, scale, ELBO) of the best mean-field normal."""
    dim = features.shape[1]

    def loss(flat):
        return -logistic_mean_field_bound(
            features, label, prior_scale, flat[:dim], np.exp(flat[dim:])
        )

    found = optimize.minimize(loss, np.zeros(2 * dim), method="BFGS", options={"gtol": 1e-6})
    return found.x[:dim], np.exp(found.x[dim:]), -float(found.fun)


def eight_schools_log_evidence(effect, standard_error, mean_scale, spread_scale):
    """Log p(y): schools and mean integrated in closed form, the spread by quadrature."""

    def at(log_spread):
        spread = np.exp(log_spread)
        covariance = mean_scale**2 * np.ones((8, 8)) + np.diag(standard_error**2 + spread**2)
        log_prior = stats.halfcauchy.logpdf(spread, scale=spread_scale) + log_spread
        return np.exp(log_normal(effect, np.zeros(8), covariance) + log_prior + 30.0)

    return float(
        np.log(integrate.quad(at, -20.0, 10.0, epsabs=0.0, epsrel=1e-10, limit=200)[0]) - 30.0
    )


def normal(lam):
    """Scipy's distribution of each element, as those below."""
    return stats.norm(lam["loc"], np.exp(lam["log_scale"]))


def log_normal_distribution(lam):
    return stats.lognorm(s=np.exp(lam["log_scale"]), scale=np.exp(lam["loc"]))


def full_normal(lam):
    unit = np.eye(lam["loc"].shape[-1]) + np.tril(lam["lower"], -1)
    factor = np.exp(lam["log_scale"])[:, None] * unit
    return stats.multivariate_normal(lam["loc"], factor @ factor.T)


def bernoulli(lam):
    return stats.bernoulli(special.expit(lam["logits"]))


def categorical(lam):
    return stats.multinomial(1, special.softmax(lam["logits"], axis=-1))


def gamma(lam):
    return stats.gamma(np.exp(lam["log_shape"]), scale=np.exp(-lam["log_rate"]))


def student_t(lam):
    return stats.t(np.exp(lam["log_degrees"]), lam["loc"], np.exp(lam["log_scale"]))


def von_mises(lam):
    return stats.vonmises(np.exp(lam["log_concentration"]), loc=lam["loc"])


def mean_on_circle(lam):
    """Of the cosines of von Mises angles, then of their sines."""
    concentration = np.exp(lam["log_concentration"])
    length = special.ive(1, concentration) / special.ive(0, concentration)
    return length * np.concatenate([np.cos(lam["loc"]), np.sin(lam["loc"])])


def mean_of_normal_chain(lam):
    """Of z1 and of z2, whose mean is affine in z1."""
    first, second = lam["first"], lam["second"]
    return np.concatenate([first["loc"], second["slope"] * first["loc"] + second["loc"]])


def summed_log_density(distribution, z):
    """[S] log density of a frozen distribution at z [S, ...], summed over elements."""
    at = distribution.logpdf if hasattr(distribution, "logpdf") else distribution.logpmf
    return np.array([np.sum(at(row)) for row in z])
