"""One file a component: the tensors it needs, the interface of its graphs, what a user should know of it."""
