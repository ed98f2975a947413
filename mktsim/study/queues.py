"""First come, first served as arrays: when each call's service ends, exactly, in whole ticks or in floats.

Theory of operation
-------------------
One server: end_k = max(a_k, end_(k-1)) + s_k. With C the running sum of services, end_k = C_k + max over j <= k of
(a_j - C_(j-1)): a running maximum (Lindley, 1952, unrolled). c servers: a call takes the server that is free first, so
the state is the c instants at which they are free, kept in order (Kiefer & Wolfowitz, 1955); that recursion goes call
by call, over all queues at once.
"""

from __future__ import annotations

from heapq import heapreplace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def service_ends(arrivals: Array, services: Array, servers: int = 1) -> Array:
    """Return when each call ends, in queues side by side.

    Parameters
    ----------
    arrivals : ndarray, shape (..., calls)
        Never falling along the last axis, from 0 on.
    services : ndarray, shape (..., calls)
        In the order of arrival.
    servers : int

    Returns
    -------
    ndarray, shape (..., calls)
        Of the arguments' kind: whole ticks stay exact.

    Notes
    -----
    One server: O(calls), about 5 ns a call. More: a numpy step a call, or a heap where there is one queue only.

    Examples
    --------
    >>> service_ends(np.array([0, 1, 10]), np.array([5, 5, 5]))
    array([ 5, 10, 15])
    >>> service_ends(np.array([0, 1, 10]), np.array([5, 5, 5]), servers=2)
    array([ 5,  6, 15])
    """
    if servers == 1:
        done = np.cumsum(services, axis=-1)
        slack: Array = arrivals - done
        slack += services
        np.maximum.accumulate(slack, axis=-1, out=slack)
        slack += done
        return slack
    shape, calls = arrivals.shape, arrivals.shape[-1]
    a, s = arrivals.reshape(-1, calls), services.reshape(-1, calls)
    if len(a) == 1:
        free: list[Any] = [0] * servers
        ends = []
        for arrival, service in zip(a[0].tolist(), s[0].tolist(), strict=True):
            end = (arrival if arrival > free[0] else free[0]) + service
            heapreplace(free, end)
            ends.append(end)
        return np.array(ends, a.dtype).reshape(shape)
    found = np.empty_like(a)
    state = np.zeros((len(a), servers), a.dtype)
    for k in range(calls):
        state[:, 0] = found[:, k] = np.maximum(a[:, k], state[:, 0]) + s[:, k]
        state.sort(axis=1)
    return found.reshape(shape)


def shared_service_ends(arrivals: Array, services: Array, hosts: NDArray[np.intp], servers: int = 1) -> Array:
    """Return when each call ends where calls in any order go to numbered hosts, each with its own queue.

    Parameters
    ----------
    arrivals, services : ndarray, shape (calls,)
        Calls that arrive at one instant are served in the order in which they stand here.
    hosts : ndarray of int, shape (calls,)
    servers : int
        Of each host.
    """
    order = np.lexsort((arrivals, hosts))
    bounds = np.flatnonzero(np.diff(hosts[order])) + 1
    ends = np.empty_like(arrivals)
    for mine in np.split(order, bounds):
        ends[mine] = service_ends(arrivals[mine], services[mine], servers)
    return ends
