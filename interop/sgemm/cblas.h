/* The one function of a BLAS that llama.cpp calls. With a BLAS, llama.cpp decodes packed matrices to f32 for prompts of 32
   tokens or more instead of rounding activations to 8 bits, so that its reading of a file can be told from that rounding. */
#ifndef CBLAS_H
#define CBLAS_H
#ifdef __cplusplus
extern "C" {
#endif
enum CBLAS_ORDER { CblasRowMajor = 101, CblasColMajor = 102 };
enum CBLAS_TRANSPOSE { CblasNoTrans = 111, CblasTrans = 112 };
/* C[m, n] = alpha A B + beta C, row-major; sums in double. */
void cblas_sgemm(enum CBLAS_ORDER order, enum CBLAS_TRANSPOSE trans_a, enum CBLAS_TRANSPOSE trans_b, int m, int n, int k,
                 float alpha, const float *a, int lda, const float *b, int ldb, float beta, float *c, int ldc);
#ifdef __cplusplus
}
#endif
#endif
