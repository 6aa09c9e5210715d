/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The report of quantizing as one page: HTML that is well-formed XML, with plots as SVG, no script and
 * nothing to load. Names come from the model's file, so they are escaped.
 */
#include "quant-table.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/message.h"

#define BAR_WIDTH  420.0 /* of the widest bar */
#define BAR_HEIGHT 14
#define PLOT_WIDTH 640.0
#define PLOT_HEIGHT 160.0

static void put_text(FILE *file, const char *text)
{
	for (; *text; text++) {
		unsigned char c = (unsigned char)*text;

		if (c == '<' || c == '>' || c == '&' || c == '"' || c < ' ')
			fprintf(file, "&#%u;", c < ' ' ? '?' : c);
		else
			fputc(c, file);
	}
}

static double bits_of(const struct quant_tensor *tensor)
{
	return 8 * (double)tensor->stored_bytes / ((double)tensor->n_rows * (double)tensor->n_cols);
}

static void put_summary(FILE *file, const struct quant_report *report)
{
	const struct quant_pass *pass = &report->passes[report->n_passes - 1];

	fprintf(file, "<p>Linear layers take %.3f bits a weight with scales, tables and hashes: %.2f times "
		"smaller than INT8, %.2f than BF16. Calibration: %s. %u passes, %.1f s.</p>\n",
		pass->bits, 8 / pass->bits, 16 / pass->bits, report->calibration, report->n_passes,
		report->seconds);
	if (report->n_windows)
		fprintf(file, "<p>On %zu windows of text held back: perplexity %.4f, was %.4f (x %.4f, standard "
			"error %.4f); KL %.5f; the same likeliest token %.2f %%.</p>\n",
			report->n_windows, report->perplexity, report->original_perplexity,
			report->perplexity / report->original_perplexity, report->loss_error, report->kl,
			100 * report->agreement);
	if (report->note[0]) {
		fputs("<p>Note: ", file);
		put_text(file, report->note);
		fputs("</p>\n", file);
	}
}

static void put_bars(FILE *file, const struct quant_report *report)
{
	double most = 1e-9;

	for (size_t i = 0; i < report->n_tensors; i++)
		most = bits_of(&report->tensors[i]) > most ? bits_of(&report->tensors[i]) : most;
	fputs("<h2>Bits a weight, and the error of the outputs</h2>\n<table>\n<tr><th>tensor</th>"
	      "<th>shape</th><th>bits</th><th></th><th>error</th><th>codes -1, 0, 1</th></tr>\n", file);
	for (size_t i = 0; i < report->n_tensors; i++) {
		const struct quant_tensor *tensor = &report->tensors[i];

		fputs("<tr><td>", file);
		put_text(file, tensor->name);
		fprintf(file, "</td><td>%llu x %llu</td><td>%.3f</td><td><svg width=\"%.0f\" height=\"%d\">"
			"<rect width=\"%.1f\" height=\"%d\" class=\"%s\"/></svg></td><td>%.3f %%</td>",
			(unsigned long long)tensor->n_rows, (unsigned long long)tensor->n_cols,
			bits_of(tensor), BAR_WIDTH, BAR_HEIGHT, BAR_WIDTH * bits_of(tensor) / most,
			BAR_HEIGHT, tensor->embedding ? "b" : "a", 100 * tensor->error);
		if (tensor->embedding)
			fputs("<td></td></tr>\n", file);
		else
			fprintf(file, "<td>%.1f %%</td></tr>\n", 100 * tensor->near_zero);
	}
	fputs("</table>\n", file);
}

/* Two curves over the codes that occur. */
static void put_histogram(FILE *file, const struct quant_report *report)
{
	double counts[2][256] = { { 0 } }, most = 1;
	int low = 127, high = 129;

	for (size_t i = 0; i < report->n_tensors; i++)
		for (int c = 0; c < 256; c++) {
			counts[0][c] += (double)report->tensors[i].nearest[c];
			counts[1][c] += (double)report->tensors[i].chosen[c];
		}
	for (int c = 0; c < 256; c++) {
		most = counts[0][c] > most ? counts[0][c] : most;
		most = counts[1][c] > most ? counts[1][c] : most;
	}
	for (int c = 0; c < 256; c++)
		if (counts[0][c] > most / 2000 || counts[1][c] > most / 2000) {
			low = c < low ? c : low;
			high = c > high ? c : high;
		}
	fprintf(file, "<h2>Codes of all linear layers, %d to %d</h2>\n<p><span class=\"a\">to the nearest</span>, "
		"<span class=\"b\">as chosen</span></p>\n<svg width=\"%.0f\" height=\"%.0f\">\n", low - 128,
		high - 128, PLOT_WIDTH, PLOT_HEIGHT + 4);
	for (int k = 0; k < 2; k++) {
		fprintf(file, "<polyline class=\"l%c\" points=\"", 'a' + k);
		for (int c = low; c <= high; c++)
			fprintf(file, "%.1f,%.1f ", (c - low) * PLOT_WIDTH / (high - low),
				2 + PLOT_HEIGHT * (1 - counts[k][c] / most));
		fputs("\"/>\n", file);
	}
	fputs("</svg>\n", file);
}

static void put_passes(FILE *file, const struct quant_report *report)
{
	fputs("<h2>Passes</h2>\n<table>\n<tr><th>step / rms</th><th>bits a weight</th>"
	      "<th>perplexity ratio</th></tr>\n", file);
	for (unsigned i = 0; i < report->n_passes; i++) {
		const struct quant_pass *pass = &report->passes[i];

		fprintf(file, "<tr><td>%.4f</td><td>%.3f</td>", pass->step, pass->bits);
		if (pass->loss > 0)
			fprintf(file, "<td>%.4f</td></tr>\n", pass->loss);
		else
			fputs("<td></td></tr>\n", file);
	}
	fputs("</table>\n", file);
}

int quant_page_write(const struct quant_report *report, const char *model, const char *path)
{
	FILE *file = fopen(path, "we");
	int r;

	if (!file)
		return message_set(-errno, "%s: cannot write: %s", path, strerror(errno));
	fputs("<html><head><meta charset=\"utf-8\"/><title>", file);
	put_text(file, model);
	fputs("</title><style>body{font:14px sans-serif;margin:2em;max-width:70em}td,th{padding:1px 8px;"
	      "text-align:left}.a{fill:#3b6ea5;color:#3b6ea5}.b{fill:#c2703d;color:#c2703d}.la,.lb{fill:none;"
	      "stroke-width:2}.la{stroke:#3b6ea5}.lb{stroke:#c2703d}</style></head><body>\n<h1>", file);
	put_text(file, model);
	fputs(", quantized</h1>\n", file);
	put_summary(file, report);
	put_histogram(file, report);
	put_bars(file, report);
	put_passes(file, report);
	fputs("</body></html>\n", file);
	r = ferror(file) ? -EIO : 0;
	if (fclose(file) != 0 && !r)
		r = -errno;
	return r ? message_set(r, "%s: cannot write: %s", path, strerror(-r)) : 0;
}
