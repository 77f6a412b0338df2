"""L2-regularised logistic and ridge regression for many problems on one set of rows."""
