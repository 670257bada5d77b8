// ComfyUI publishes no types for the modules it serves to extensions.
export const app: any;
