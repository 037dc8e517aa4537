#include "cblas.h"

#include <stdlib.h>

void cblas_sgemm(enum CBLAS_ORDER order, enum CBLAS_TRANSPOSE trans_a, enum CBLAS_TRANSPOSE trans_b, int m, int n, int k,
                 float alpha, const float *a, int lda, const float *b, int ldb, float beta, float *c, int ldc) {
    if (order != CblasRowMajor) abort();
    for (int i = 0; i < m; i++) {
        for (int j = 0; j < n; j++) {
            double sum = 0;
            for (int l = 0; l < k; l++) {
                double x = trans_a == CblasTrans ? a[(long)l * lda + i] : a[(long)i * lda + l];
                double y = trans_b == CblasTrans ? b[(long)j * ldb + l] : b[(long)l * ldb + j];
                sum += x * y;
            }
            float *out = &c[(long)i * ldc + j];
            *out = (float)(alpha * sum + (beta == 0 ? 0 : beta * *out));
        }
    }
}

/* What CMake looks for in a BLAS. */
void sgemm_(void) { abort(); }
