/* SPDX-License-Identifier: Apache-2.0 */
/*
 * hello MODEL TENSOR: the smallest program of dcmem. Prints the first numbers of a tensor.
 * MODEL is the name of a model that dcmemd holds, or a container file (with a '/' or .dcmem).
 * cc hello.c $(pkg-config --cflags --libs dcmem)
 */
#include <inttypes.h>
#include <stdio.h>

#include <dcmem/dcmem.h>

int main(int argc, char **argv)
{
	struct dcmem *model;
	struct dcmem_tensor tensor;
	float numbers[8];
	int result;

	if (argc != 3) {
		fprintf(stderr, "usage: hello MODEL TENSOR\n");
		return 2;
	}
	result = dcmem_open(argv[1], NULL, &model);
	if (result) {
		fprintf(stderr, "hello: %s: %s\n", argv[1], dcmem_error());
		return 1;
	}
	result = dcmem_find(model, argv[2], &tensor);
	if (result == 0) {
		uint64_t n = tensor.n_cols < 8 ? tensor.n_cols : 8;
		struct dcmem_read request = {
			.size = sizeof(request),
			.tensor = tensor.id,
			.n_rows = 1,
			.n_cols = n,
			.dtype = DCMEM_F32,
			.dst = numbers,
			.dst_bytes = sizeof(numbers),
		};
		printf("%s: %s, %" PRIu64 " rows of %" PRIu64 "\n", tensor.name,
		       dcmem_dtype_name(tensor.dtype), tensor.n_rows, tensor.n_cols);
		result = dcmem_read(model, &request);
		for (uint64_t i = 0; result == 0 && i < n; i++)
			printf("%.9g\n", numbers[i]);
	}
	if (result)
		fprintf(stderr, "hello: %s: %s\n", argv[2], dcmem_error());
	dcmem_close(model);
	return result ? 1 : 0;
}
